//! `phiward policy fmt`: writes policy files in their one layout.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::shared::{NO, Paint, UNREADABLE, complain, read, say};
use crate::policy::fmt::format;
use crate::yaml;

/// What `fmt` is told.
#[derive(Debug, clap::Args)]
pub struct FmtArgs {
    /// The policy files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Change nothing; name the files that would be changed, and exit with 1 if there are any
    #[arg(long)]
    check: bool,
}

pub(super) fn fmt(args: FmtArgs) -> u8 {
    let codes = args.files.iter().map(|path| match one(path, args.check) {
        Ok(code) => code,
        Err(text) => {
            complain(&text);
            UNREADABLE
        }
    });
    codes.max().unwrap_or_default()
}

fn one(path: &Path, check: bool) -> Result<u8, String> {
    let file = path.display().to_string();
    let source = read(path).map_err(|error| format!("error: {error}\n"))?;
    let text = format(&source).map_err(|problem| {
        let source = String::from_utf8_lossy(&source);
        yaml::render_as(&Paint::stderr().red("error"), &file, &source, &problem)
    })?;
    if text.as_bytes() == source {
        return Ok(0);
    }
    if check {
        say(&format!("{file}: would be formatted\n"));
        return Ok(NO);
    }
    replace(path, &text).map_err(|error| format!("error: cannot write {file}: {error}\n"))?;
    say(&format!("{file}: formatted\n"));
    Ok(0)
}

/// Writes a new file beside the old one and moves it there, so that nobody ever reads half of it. A link stays a link.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let path = path.canonicalize()?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(path.metadata()?.permissions())?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}
