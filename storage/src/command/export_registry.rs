//! The exports of a graph, of all kinds: what has which id, and how one goes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use ferry_api::command::{BlockExportInfo, BlockExportRemoveMode, BlockExportType};
use ferry_block::job::{BlockEvent, JobRegistry};
use ferry_block::{BlockGraph, Error, ErrorKind, Notify, Result, within};

use crate::export_kind::RunningExport;

/// How long a command waits for exports to be gone. What takes longer is storage that does not answer, and
/// for that the monitor must not wait: they go on going, and an event tells when they are gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// In the order they were added.
#[derive(Default)]
pub(super) struct Exports {
    entries: RefCell<Vec<Rc<Entry>>>,
    /// One is gone.
    gone: Notify,
}

struct Entry {
    id: String,
    kind: BlockExportType,
    export: Rc<dyn RunningExport>,
    closing: Cell<bool>,
}

impl Exports {
    pub(super) fn of(graph: &BlockGraph) -> Rc<Exports> {
        graph.extension(Exports::default)
    }

    /// Starts one by `start`, unless another has its id.
    ///
    /// # Errors
    /// The id is taken, or those of `start`.
    pub(super) async fn add(
        &self,
        kind: BlockExportType,
        id: &str,
        start: impl Future<Output = Result<Rc<dyn RunningExport>>>,
    ) -> Result<()> {
        self.check_new(id)?;
        let export = start.await?;
        // Somebody may have been faster.
        if let Err(taken) = self.check_new(id) {
            export.close().await;
            return Err(taken);
        }
        let entry = Entry { id: id.to_owned(), kind, export, closing: Cell::new(false) };
        self.entries.borrow_mut().push(Rc::new(entry));
        Ok(())
    }

    fn check_new(&self, id: &str) -> Result<()> {
        if self.entries.borrow().iter().any(|entry| entry.id == id) {
            let context = format!("Block export id '{id}' is already in use");
            return Err(Error::new(ErrorKind::AlreadyExists, context));
        }
        Ok(())
    }

    /// Refuses an export of another kind.
    ///
    /// # Errors
    /// It is not `kind`, or there is none of that id.
    pub(super) fn check_kind(&self, id: &str, kind: BlockExportType) -> Result<()> {
        let entries = self.open_entries(|_| true);
        match entries.iter().find(|entry| entry.id == id) {
            None => Err(not_found(id)),
            Some(entry) if entry.kind == kind => Ok(()),
            Some(_) => {
                // There are two kinds, and only NBD's have commands of their own.
                let context = format!("Block export '{id}' is not an NBD export");
                Err(Error::new(ErrorKind::InvalidArgument, context))
            }
        }
    }

    /// Takes one away. When this is over its node is free, or will be when the storage answers.
    ///
    /// # Errors
    /// There is none of that id, or somebody uses it and may go on to.
    pub(super) async fn remove(
        self: &Rc<Self>,
        graph: &BlockGraph,
        id: &str,
        mode: BlockExportRemoveMode,
    ) -> Result<()> {
        let Some(entry) = self.open_entries(|_| true).into_iter().find(|entry| entry.id == id)
        else {
            return Err(not_found(id));
        };
        if mode == BlockExportRemoveMode::Safe && entry.export.has_client() {
            return Err(Error::new(ErrorKind::Busy, format!("export '{id}' still in use")));
        }
        let this = Rc::as_ptr(&entry);
        self.begin_to_close(graph, entry);
        let gone = || self.entries.borrow().iter().all(|entry| Rc::as_ptr(entry) != this);
        within(graph.executor(), PATIENCE, self.gone.wait_until(gone)).await;
        Ok(())
    }

    /// Takes all of these kinds away. From the call on nobody gets in; the result is over when they are gone,
    /// however long that takes.
    pub(super) fn remove_all<F>(
        self: &Rc<Self>,
        graph: &BlockGraph,
        of: F,
    ) -> impl Future<Output = ()> + use<F>
    where
        F: Fn(BlockExportType) -> bool,
    {
        for entry in self.open_entries(&of) {
            self.begin_to_close(graph, entry);
        }
        let this = Rc::clone(self);
        async move {
            // Others may be added before the last of these is gone.
            let closing = |entry: &Rc<Entry>| of(entry.kind) && entry.closing.get();
            let gone = || !this.entries.borrow().iter().any(closing);
            this.gone.wait_until(gone).await;
        }
    }

    fn open_entries(&self, of: impl Fn(BlockExportType) -> bool) -> Vec<Rc<Entry>> {
        let entries = self.entries.borrow();
        entries.iter().filter(|entry| of(entry.kind) && !entry.closing.get()).cloned().collect()
    }

    fn begin_to_close(self: &Rc<Self>, graph: &BlockGraph, entry: Rc<Entry>) {
        entry.closing.set(true);
        entry.export.retire();
        let (this, graph, executor) = (Rc::clone(self), graph.clone(), graph.executor().clone());
        drop(executor.spawn(async move {
            entry.export.close().await;
            this.entries.borrow_mut().retain(|other| !Rc::ptr_eq(other, &entry));
            let (id, node) = (entry.id.clone(), graph.node(&entry.export.node_name()));
            // Its node must be free before anybody hears of it, and closed if it was the last that kept it.
            drop(entry);
            if let Some(node) = node {
                graph.release(node).await;
            }
            JobRegistry::of(&graph).emit(BlockEvent::BlockExportDeleted { id });
            this.gone.notify_all();
        }));
    }

    /// What `query-block-exports` shows.
    pub(super) fn infos(&self) -> Vec<BlockExportInfo> {
        let info = |entry: &Rc<Entry>| BlockExportInfo {
            id: entry.id.clone(),
            kind: entry.kind,
            node_name: entry.export.node_name(),
            shutting_down: entry.closing.get(),
        };
        self.entries.borrow().iter().map(info).collect()
    }
}

fn not_found(id: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("Export '{id}' is not found"))
}

#[cfg(test)]
#[path = "export_registry_tests.rs"]
mod tests;
