//! Writes a kernel's first file system (cpio, "newc"), without root rights: device nodes are only entries.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

const FOLDER: u32 = 0o040_755;
const PLAIN: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const TERMINAL: u32 = 0o020_600;

/// An archive under construction. Several archives, one behind the other, are one file system.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    known: BTreeSet<String>,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Archive {
        Archive::default()
    }

    /// Adds an empty folder and those above it.
    pub fn folder(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.known.contains(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        self.entry(path, FOLDER, (0, 0), &[]);
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.place(path, PLAIN, (0, 0), content);
    }

    /// Adds a file that can be executed.
    pub fn script(&mut self, path: &str, content: &[u8]) {
        self.place(path, PROGRAM, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.place(path, LINK, (0, 0), to.as_bytes());
    }

    /// Adds the console's device node, which a kernel wants before it has mounted anything.
    pub fn console(&mut self) {
        self.place("dev/console", TERMINAL, (5, 1), &[]);
    }

    /// Adds a file of this machine under another name.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn copy(&mut self, from: &Path, path: &str) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.script(path, &bytes);
        Ok(())
    }

    /// Adds a program of this machine with the libraries that it loads.
    ///
    /// # Errors
    ///
    /// When the program or a library cannot be found.
    pub fn program(&mut self, name: &str, package: &str) -> Result<()> {
        let file =
            command::find(name).with_context(|| format!("{name} is missing: install {package}"))?;
        self.copy(&file, &format!("bin/{name}"))?;
        for word in command::output(Command::new("ldd").arg(&file))?.split_ascii_whitespace() {
            let library = Path::new(word);
            if word.starts_with('/') && !self.known.contains(word.trim_start_matches('/')) {
                self.copy(library, word)?;
            }
        }
        Ok(())
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn place(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let path = path.trim_start_matches('/');
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        self.entry(path, mode, device, content);
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.known.insert(path.to_owned());
        self.inode += 1;
        let name = path.len() + 1;
        let numbers = [self.inode, mode, 0, 0, 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes.extend_from_slice(format!("{number:08x}").as_bytes());
        }
        for number in [content.len(), 0, 0, device.0 as usize, device.1 as usize, name, 0] {
            self.bytes.extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
