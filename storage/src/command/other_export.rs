//! Exports that do not belong to the NBD server.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ferry_api::command::{BlockExportInfo, BlockExportType};
use ferry_block::job::{BlockEvent, JobRegistry};
use ferry_block::nbd::RemoveMode;
use ferry_block::{BlockGraph, Error, ErrorKind, Result};

use crate::export_kind::{RunningExport, StartExport, VhostUserBlkOptions};

/// Those of a graph, in the order they were added.
#[derive(Default)]
pub(super) struct OtherExports(RefCell<Vec<Rc<Entry>>>);

struct Entry {
    id: String,
    export: Rc<dyn RunningExport>,
    closing: Cell<bool>,
}

impl OtherExports {
    pub(super) fn of(graph: &BlockGraph) -> Rc<OtherExports> {
        graph.extension(OtherExports::default)
    }

    /// Refuses an id that one of them has.
    pub(super) fn check_new(&self, id: &str) -> Result<()> {
        if self.find(id).is_some() {
            let context = format!("Block export id '{id}' is already in use");
            return Err(Error::new(ErrorKind::AlreadyExists, context));
        }
        Ok(())
    }

    /// Whether there is one of that id.
    pub(super) fn has(&self, id: &str) -> bool {
        self.find(id).is_some()
    }

    fn find(&self, id: &str) -> Option<Rc<Entry>> {
        self.0.borrow().iter().find(|entry| entry.id == id).cloned()
    }

    /// Starts one.
    pub(super) async fn add(
        &self,
        graph: &BlockGraph,
        start: StartExport<VhostUserBlkOptions>,
        options: VhostUserBlkOptions,
    ) -> Result<()> {
        let id = options.id.clone();
        self.check_new(&id)?;
        let export = start(graph.clone(), options).await?;
        // Somebody may have been faster.
        if let Err(taken) = self.check_new(&id) {
            export.close().await;
            return Err(taken);
        }
        self.0.borrow_mut().push(Rc::new(Entry { id, export, closing: Cell::new(false) }));
        Ok(())
    }

    /// Takes one away; its node is free then.
    pub(super) async fn remove(
        &self,
        graph: &BlockGraph,
        id: &str,
        mode: RemoveMode,
    ) -> Result<()> {
        let Some(entry) = self.find(id).filter(|entry| !entry.closing.get()) else {
            return Err(Error::new(ErrorKind::NotFound, format!("Export '{id}' is not found")));
        };
        if mode == RemoveMode::Safe && entry.export.has_client() {
            return Err(Error::new(ErrorKind::Busy, format!("export '{id}' still in use")));
        }
        entry.closing.set(true);
        entry.export.close().await;
        self.0.borrow_mut().retain(|other| !Rc::ptr_eq(other, &entry));
        // Its node must be free before anybody hears of it.
        drop(entry);
        JobRegistry::of(graph).emit(BlockEvent::BlockExportDeleted { id: id.to_owned() });
        Ok(())
    }

    /// Takes all of them away.
    pub(super) async fn remove_all(&self, graph: &BlockGraph) -> Result<()> {
        while let Some(id) = self.first_open() {
            self.remove(graph, &id, RemoveMode::Hard).await?;
        }
        Ok(())
    }

    fn first_open(&self) -> Option<String> {
        let entries = self.0.borrow();
        entries.iter().find(|entry| !entry.closing.get()).map(|entry| entry.id.clone())
    }

    /// What `query-block-exports` shows.
    pub(super) fn infos(&self) -> Vec<BlockExportInfo> {
        let info = |entry: &Rc<Entry>| BlockExportInfo {
            id: entry.id.clone(),
            kind: BlockExportType::VhostUserBlk,
            node_name: entry.export.node_name(),
            shutting_down: entry.closing.get(),
        };
        self.0.borrow().iter().map(info).collect()
    }
}
