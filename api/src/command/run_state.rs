//! Run state of the guest: what `stop`, `cont`, `quit`, … take and what `query-status` returns.

use crate::schema::{enumeration, object};

enumeration! {
    /// What the guest is doing.
    pub enum RunState {
        /// Under a debugger.
        Debug = "debug",
        /// Waiting for an incoming migration.
        InMigrate = "inmigrate",
        /// Stopped by an error inside the monitor.
        InternalError = "internal-error",
        /// Stopped by a disk error whose policy is to stop.
        IoError = "io-error",
        /// Stopped by `stop`.
        Paused = "paused",
        /// Migrated away.
        PostMigrate = "postmigrate",
        /// Not started yet.
        Prelaunch = "prelaunch",
        /// Stopped for the last part of a migration.
        FinishMigrate = "finish-migrate",
        /// Restoring a saved state.
        RestoreVm = "restore-vm",
        /// Executing.
        Running = "running",
        /// Saving its state.
        SaveVm = "save-vm",
        /// Powered off, the process stays.
        Shutdown = "shutdown",
        /// Suspended by the guest.
        Suspended = "suspended",
        /// Stopped by a watchdog.
        Watchdog = "watchdog",
        /// The guest's kernel has panicked.
        GuestPanicked = "guest-panicked",
        /// Saving or restoring a checkpoint.
        Colo = "colo",
    }
}

object! {
    /// Result of `query-status`.
    pub struct StatusInfo {
        /// Whether virtual CPUs execute.
        running: bool = "running",
        /// Whether they execute one instruction at a time. Never; clients expect the member.
        singlestep: bool = "singlestep",
        /// Which state exactly.
        status: RunState = "status",
    }
}

object! {
    /// Arguments of `cont`.
    #[derive(Default)]
    pub struct Cont {
        /// Start a guest that was migrated away although another process may run it. Only for an
        /// operator who knows that the destination is gone: two running copies destroy the disk.
        force: Option<bool> = "__org.ferry_force",
    }
}

object! {
    /// Result of `query-name`.
    #[derive(Default)]
    pub struct NameInfo {
        /// The guest's name, if it was given one.
        name: Option<String> = "name",
    }
}

object! {
    /// Result of `query-uuid`.
    pub struct UuidInfo {
        /// The guest's UUID; all zeroes when none was given.
        uuid: String = "UUID",
    }
}

object! {
    /// Result of `query-kvm`.
    pub struct KvmInfo {
        /// Whether KVM runs the guest.
        enabled: bool = "enabled",
        /// Whether this build can use KVM.
        present: bool = "present",
    }
}

enumeration! {
    /// Why a guest went down or was reset.
    pub enum ShutdownCause {
        /// No cause known.
        None = "none",
        /// An error of the host.
        HostError = "host-error",
        /// `quit`.
        HostQmpQuit = "host-qmp-quit",
        /// `system_reset`.
        HostQmpSystemReset = "host-qmp-system-reset",
        /// A signal to the process.
        HostSignal = "host-signal",
        /// The user interface.
        HostUi = "host-ui",
        /// The guest powered itself off.
        GuestShutdown = "guest-shutdown",
        /// The guest rebooted.
        GuestReset = "guest-reset",
        /// The guest's kernel panicked.
        GuestPanic = "guest-panic",
        /// A part of the machine was reset.
        SubsystemReset = "subsystem-reset",
        /// A snapshot was loaded.
        SnapshotLoad = "snapshot-load",
    }
}

enumeration! {
    /// What happens to a guest whose kernel panicked.
    pub enum PanicAction {
        /// It stays paused.
        Pause = "pause",
        /// It is powered off.
        Poweroff = "poweroff",
        /// It goes on.
        Run = "run",
    }
}
