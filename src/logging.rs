//! The process's log: text or JSON on stderr, with a level that can change while it runs.
//!
//! Libraries that see requests log them at their finer levels, header values and all, so their targets are held at
//! warnings whatever level is asked for. phiward's own types have no form that prints PHI.

use std::fmt;
use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The handle by which the level changes.
#[derive(Clone)]
pub struct LogLevel(reload::Handle<Own, Registry>);

/// A level that is none.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no log level: use error, warn, info, debug or trace")]
pub struct UnknownLevel(String);

/// Own lines up to a level, everybody else's up to warnings.
#[derive(Debug, Clone, Copy)]
struct Own(LevelFilter);

/// Starts the log. To be called once, at the start of the process.
pub fn start(format: LogFormat, level: LevelFilter) -> LogLevel {
    let (filter, handle) = reload::Layer::new(Own(level));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    // A second call in one process keeps the first log.
    drop(tracing_subscriber::registry().with(lines.with_filter(filter)).try_init());
    LogLevel(handle)
}

impl LogLevel {
    /// Changes the level.
    ///
    /// # Errors
    /// [`UnknownLevel`].
    pub fn set(&self, name: &str) -> Result<(), UnknownLevel> {
        let level: Level = name.parse().map_err(|_| UnknownLevel(name.chars().take(20).collect()))?;
        // Fails only once the log is gone, and then there is no level to change.
        drop(self.0.modify(|own| own.0 = LevelFilter::from_level(level)));
        Ok(())
    }
}

impl Own {
    fn shows(self, meta: &Metadata<'_>) -> bool {
        let ours = meta.target().starts_with("phiward");
        let limit = if ours { self.0 } else { self.0.min(LevelFilter::WARN) };
        *meta.level() <= limit
    }
}

impl<S: Subscriber> Filter<S> for Own {
    fn enabled(&self, meta: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.shows(meta)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLevel")
    }
}
