//! Character devices: where the bytes of serial ports and of QMP itself come from and go to.

use std::path::Path;

use crate::schema::object;

object! {
    /// One entry of `query-chardev`.
    pub struct ChardevInfo {
        /// Its name.
        label: String = "label",
        /// What is on its other side, in words.
        filename: String = "filename",
        /// Whether somebody on this side uses it.
        frontend_open: bool = "frontend-open",
    }
}

impl ChardevInfo {
    /// A device in use, with what is on its other side.
    pub fn new(label: &str, filename: &str) -> ChardevInfo {
        let (label, filename) = (label.to_owned(), filename.to_owned());
        ChardevInfo { label, filename, frontend_open: true }
    }

    /// A device in use that listens on a socket.
    pub fn listening(label: &str, path: &Path) -> ChardevInfo {
        ChardevInfo::new(label, &format!("unix:{},server=on", path.display()))
    }
}

/// The label of the QMP socket that the command line asked for as number `index`.
pub fn qmp_label(index: usize) -> String {
    format!("compat_monitor{index}")
}
