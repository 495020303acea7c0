//! The `qcow2` format.
//!
//! # What is where
//!
//! *Formats*, which know bytes and nothing else: [`header`] is where an image begins, [`geometry`]
//! what follows from it, [`entry`] what the tables say; `bytes` takes fields out of any of them.
//!
//! *The image in use*, from the request down:
//!
//! - `open` finds the files that belong together as `options` say, `own` takes the image over and
//!   gives it up.
//! - `driver` is what a node sees. `read`, `write` (with `cow` for clusters that must be filled and
//!   `compress`), `zero` and `resize` are the requests.
//! - `map` is where a guest address is in the file; `alloc` which clusters are given out; `frees`
//!   how they come back; `refcounts` who refers to them. `root_table` and `cache` keep the tables in
//!   memory, and their `checksum`s with them, so that what faulty memory does to them is not written;
//!   `overlap` keeps writes off metadata.
//! - `flush` writes all of that out in an order that a crash cannot harm; `gate` knows which
//!   requests are under way.
//!
//! *The image as a whole*, over the image file while nobody else uses it: [`create`], [`check`],
//! `usage`, and, on top of `at_rest`, [`snapshot`], [`bitmap`], `tighten` and [`amend`] with
//! `expand`. `container` reads and writes tables for all of these.
//!
//! # Invariants
//!
//! 1. An entry that is durable points to a cluster whose refcount is durable, and that holds what
//!    the guest may read there.
//! 2. A refcount is lowered, and its cluster used for something else, only when no durable entry
//!    points there any more and every request that may have seen such an entry has ended.
//! 3. So a crash at any moment leaks clusters at worst. The dirty bit is only used when the user
//!    wants lazy refcounts, and for as long as it takes to make or delete a snapshot: the flags in
//!    the tables that repeat refcounts cannot change together with them.
//! 4. Entries of a guest cluster change under its lock, in one go without an await; everything that
//!    changes tables runs as a task of its own and is never given up half way. What goes on when its
//!    caller has given up, a task or a write in the kernel, keeps a pass to its end (`gate`).
//! 5. An image that is not active is never written, and nothing that was read before it became
//!    active is believed afterwards.
//! 6. What is in memory is never behind the file: after an operation on the image as a whole no
//!    request goes by it before it was read again (`gate`), and a header whose write failed is
//!    written again before a flush ends (`image`).

mod alloc;
pub mod amend;
mod at_rest;
pub mod bitmap;
mod bytes;
mod cache;
pub mod check;
mod checksum;
mod compress;
mod container;
mod cow;
pub mod create;
mod driver;
pub mod entry;
mod expand;
mod flush;
mod frees;
mod gate;
pub mod geometry;
pub mod header;
#[cfg(test)]
mod hostile_tests;
mod image;
mod map;
mod open;
mod options;
mod overlap;
mod own;
mod read;
mod refcounts;
mod resize;
mod root_table;
pub mod snapshot;
#[cfg(test)]
mod test_rig;
mod tighten;
mod usage;
mod write;
mod zero;

pub use driver::Qcow2Driver;
pub(crate) use open::file_perms;
pub use options::{BackingRef, OverlapCheck, OverlapFlags, OverlapTemplate, Qcow2Options};
pub use usage::referenced_clusters;

#[cfg(test)]
mod tests;
