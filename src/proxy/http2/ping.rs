//! Is the other end still there? A node that lost its power says nothing, and what was sent to it is sent again for a quarter of
//! an hour before the kernel gives up.

use std::time::Duration;

use h2::{Ping, PingPong};

/// How long until a connection is asked again.
const EVERY: Duration = Duration::from_secs(20);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(20);

/// Returns once the other end no longer answers. One timer a connection; nothing is looked at for each frame.
pub(super) async fn unanswered(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(EVERY).await;
        match tokio::time::timeout(ANSWER, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return std::future::pending().await, // it is closing by itself
            Err(_) => return,
        }
    }
}
