//! hyper's executor on a single-threaded runtime.

use hyper::rt::Executor;

/// Runs hyper's HTTP/2 tasks on the worker that owns the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExec;

impl<F> Executor<F> for LocalExec
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(future));
    }
}
