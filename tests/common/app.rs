//! Apps behind the proxy, by hand: they answer with given bytes and remember what reached them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};

use super::wire::{Message, Wire};

/// What an app does once it has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Keep,
    Close,
}

/// An app that speaks HTTP/1 and keeps a record.
#[derive(Clone)]
pub struct App {
    pub addr: SocketAddr,
    seen: Arc<Mutex<Vec<Message>>>,
    connections: Arc<AtomicUsize>,
}

impl App {
    /// Answers everything with `answer` and keeps the connection.
    pub async fn answering(answer: &'static str) -> Self {
        Self::start(move |_| (answer.as_bytes().to_vec(), After::Keep)).await
    }

    /// Answers as `answer` says.
    pub async fn start<F>(answer: F) -> Self
    where
        F: Fn(&Message) -> (Vec<u8>, After) + Send + Sync + 'static,
    {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(answer);
        let addr = accepting({
            let (seen, connections) = (seen.clone(), connections.clone());
            move |stream| {
                connections.fetch_add(1, Ordering::Relaxed);
                serve(stream, seen.clone(), answer.clone())
            }
        })
        .await;
        Self { addr, seen, connections }
    }

    /// The requests that arrived, in order.
    pub fn seen(&self) -> Vec<Message> {
        self.seen.lock().unwrap().clone()
    }

    /// The one request that arrived.
    pub fn only(&self) -> Message {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn serve<F>(stream: TcpStream, seen: Arc<Mutex<Vec<Message>>>, answer: Arc<F>)
where
    F: Fn(&Message) -> (Vec<u8>, After),
{
    let mut wire = Wire::new(stream);
    while let Some(request) = wire.request().await {
        let (bytes, after) = answer(&request);
        seen.lock().unwrap().push(request);
        wire.send(bytes).await;
        if after == After::Close {
            return;
        }
    }
}

/// Gives each accepted connection to `serve`, for as long as the test's runtime lives.
pub async fn accepting<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream));
        }
    });
    addr
}
