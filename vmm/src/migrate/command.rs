//! Migration by QMP.

use std::rc::Rc;
use std::time::Duration;

use ferry_api::QmpError;
use ferry_api::command::{
    InetSocketAddress, MAX_DOWNTIME_LIMIT_MS, Migrate, MigrateSetCapabilities, MigrationCapability,
    MigrationCapabilityStatus, MigrationInfo, MigrationParameters, MigrationStats, SocketAddress,
    SocketKind, UnixSocketAddress,
};
use ferry_migration::stats::{RamStats, Snapshot, Status};
use ferry_migration::transport::Uri;
use ferry_storage::signed;

use super::qmp_status;
use crate::control::{Control, machine_error};
use crate::lifecycle::RunState;

/// The capabilities that can be on. The others are known so that clients can switch them off.
const AVAILABLE: [MigrationCapability; 4] = [
    MigrationCapability::Events,
    // Always so, asked for or not.
    MigrationCapability::ReturnPath,
    MigrationCapability::LateBlockActivate,
    MigrationCapability::ZeroBlocks,
];

impl Control {
    /// `migrate`: starts it; failures to connect are reported later.
    pub(crate) fn migrate(self: &Rc<Self>, arguments: Migrate) -> Result<(), QmpError> {
        let uri = Uri::parse(&arguments.uri).map_err(|e| QmpError::generic(e.to_string()))?;
        match self.machine.run_state() {
            RunState::InMigrate => {
                Err(QmpError::generic("Guest is waiting for an incoming migration"))
            }
            _ if self.migrations.is_busy() => Err(QmpError::migration_in_progress()),
            RunState::PostMigrate => Err(QmpError::generic(
                "Can't migrate the vm that was paused due to previous migration",
            )),
            _ => self.send(uri).map_err(machine_error),
        }
    }

    /// `migrate-incoming`
    pub(crate) fn migrate_incoming(self: &Rc<Self>, uri: &str) -> Result<(), QmpError> {
        if self.machine.run_state() != RunState::InMigrate {
            return Err(QmpError::not_incoming());
        }
        self.receive(uri).map_err(machine_error)
    }

    /// `migrate_cancel`
    pub(crate) fn migrate_cancel(&self) -> Result<(), QmpError> {
        let session = self.migrations.session.borrow().clone();
        let Some(session) = session else { return Ok(()) };
        if self.machine.run_state() == RunState::InMigrate {
            // A destination's cancel is its end; `quit` is the command for that.
            return Ok(());
        }
        match session.cancel() {
            Ok(true) => {
                self.migration_status(Status::Cancelling);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(too_late) => Err(QmpError::generic(too_late.to_string())),
        }
    }

    /// `migrate-set-parameters`
    pub(crate) fn migrate_set_parameters(&self, set: &MigrationParameters) -> Result<(), QmpError> {
        if set.downtime_limit.is_some_and(|limit| limit > MAX_DOWNTIME_LIMIT_MS) {
            let range = "an integer in the range of 0 to (2000 * 1000) ms";
            return Err(QmpError::argument_value("downtime-limit", range));
        }
        if let Some(limit) = set.downtime_limit {
            self.migrations.tuning.set_downtime_limit(Duration::from_millis(limit));
        }
        if let Some(bandwidth) = set.max_bandwidth {
            self.migrations.tuning.set_max_bandwidth(bandwidth);
        }
        Ok(())
    }

    /// `query-migrate-parameters`
    pub(crate) fn query_migrate_parameters(&self) -> MigrationParameters {
        let tuning = &self.migrations.tuning;
        let limit = tuning.downtime_limit().as_millis();
        MigrationParameters {
            max_bandwidth: Some(tuning.max_bandwidth()),
            downtime_limit: Some(u64::try_from(limit).unwrap_or(u64::MAX)),
        }
    }

    /// `migrate-set-capabilities`: all of them or, when one is refused, none.
    pub(crate) fn migrate_set_capabilities(
        &self,
        arguments: MigrateSetCapabilities,
    ) -> Result<(), QmpError> {
        // A destination that still waits for its guest is told like one that was told before it waited.
        let waits = self.machine.run_state() == RunState::InMigrate
            && self.migrations.status() == Status::Setup;
        if self.migrations.is_busy() && !waits {
            return Err(QmpError::migration_in_progress());
        }
        let missing =
            |set: &&MigrationCapabilityStatus| set.state && !AVAILABLE.contains(&set.capability);
        if let Some(set) = arguments.capabilities.iter().find(missing) {
            let name = set.capability.as_str();
            let text = format!("ferry has no migration capability '{name}' yet: leave it off");
            return Err(QmpError::generic(text));
        }
        let mut on = self.migrations.capabilities.borrow_mut();
        for set in arguments.capabilities {
            on.retain(|capability| *capability != set.capability);
            if set.state {
                on.push(set.capability);
            }
        }
        Ok(())
    }

    /// `query-migrate-capabilities`
    pub(crate) fn query_migrate_capabilities(&self) -> Vec<MigrationCapabilityStatus> {
        let status = |capability: &MigrationCapability| MigrationCapabilityStatus {
            capability: *capability,
            state: self.migrations.has(*capability),
        };
        MigrationCapability::ALL.iter().map(status).collect()
    }

    /// `query-migrate`
    pub(crate) fn query_migrate(&self) -> MigrationInfo {
        let listening = self.migrations.listening.borrow().clone();
        let session = self.migrations.session.borrow();
        let Some(session) = &*session else { return MigrationInfo::default() };
        MigrationInfo {
            socket_address: listening.map(|uri| vec![socket_address(uri)]),
            ..migration_info(session.stats.snapshot())
        }
    }
}

fn migration_info(from: Snapshot) -> MigrationInfo {
    MigrationInfo {
        status: Some(qmp_status(from.status)),
        ram: from.ram.as_ref().map(ram_stats),
        total_time: from.total_time.map(signed),
        setup_time: from.setup_time.map(signed),
        expected_downtime: from.expected_downtime.map(signed),
        downtime: from.downtime.map(signed),
        error_desc: from.error_desc,
        ..MigrationInfo::default()
    }
}

fn ram_stats(from: &RamStats) -> MigrationStats {
    MigrationStats {
        transferred: signed(from.transferred),
        remaining: signed(from.remaining),
        total: signed(from.total),
        duplicate: signed(from.duplicate),
        normal: signed(from.normal),
        normal_bytes: signed(from.normal_bytes),
        dirty_pages_rate: signed(from.dirty_pages_rate),
        mbps: from.mbps,
        dirty_sync_count: signed(from.dirty_sync_count),
        postcopy_requests: signed(from.postcopy_requests),
        page_size: signed(from.page_size),
        multifd_bytes: from.multifd_bytes,
        pages_per_second: from.pages_per_second,
        precopy_bytes: from.precopy_bytes,
        downtime_bytes: from.downtime_bytes,
        postcopy_bytes: from.postcopy_bytes,
        ..MigrationStats::default()
    }
}

fn socket_address(uri: Uri) -> SocketAddress {
    let address = match uri {
        Uri::Tcp { host, port } => {
            let port = port.to_string();
            SocketKind::Inet(InetSocketAddress { host, port, ..InetSocketAddress::default() })
        }
        Uri::Unix(path) => {
            SocketKind::Unix(UnixSocketAddress { path: path.to_string_lossy().into_owned() })
        }
    };
    SocketAddress { address }
}
