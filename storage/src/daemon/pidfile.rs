//! A file with the process's number, locked while the process lives.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The file; it goes away with this.
pub(super) struct PidFile {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl PidFile {
    /// Writes the file. One that a process left behind is replaced, one in use is not.
    pub(super) fn create(path: &Path) -> Result<PidFile> {
        let name = path.display();
        let failed = |e: std::io::Error| Error::host(&format!("write the PID file {name}"), &e);
        let open = File::options().create(true).write(true).truncate(false).open(path);
        let mut file = open.map_err(failed)?;
        if file.try_lock().is_err() {
            let context = format!("--pidfile {name}: another process uses it");
            return Err(Error::new(ErrorKind::Config, context));
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(PidFile { path: path.to_owned(), _file: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the PID file was gone already");
        }
    }
}
