//! Events: what clients are told without having asked.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    command::{
        ErrorAction, IoOperation, JobStatus, JobType, MigrationStatus, PanicAction, ShutdownCause,
    },
    interface,
    schema::{Described, Empty, TypeFn, object},
};

/// What the table says of one event.
#[derive(Debug)]
pub struct EventInfo {
    /// Its name on the wire.
    pub name: &'static str,
    /// Its data: always an object.
    pub data: TypeFn,
    /// If set, at most one such event (about one thing) per this time is sent; of the rest the last
    /// one is sent when the time is over.
    pub rate_limit: Option<Duration>,
}

/// Declares the enum of events and a table for each of its groups: `Variant(Data) = "NAME"`, and
/// `limit seconds` where a guest could cause a flood.
macro_rules! events {
    (
        $(#[$attr:meta])*
        pub enum $enum:ident {
            $( $table:ident {
                $( $(#[$event_attr:meta])*
                   $variant:ident $(($data:ty))? = $name:literal $(limit $seconds:literal)?, )*
            } )*
        }
    ) => {
        $(#[$attr])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $enum {
            $( $( $(#[$event_attr])* $variant $(($data))?, )* )*
        }

        impl $enum {
            /// The event's name and its data, where it has any.
            fn into_parts(self) -> (&'static str, Option<Value>) {
                match self {
                    $( $( events!(@pattern $enum $variant data $($data)?) =>
                        ($name, events!(@value data $($data)?)), )* )*
                }
            }
        }

        $( pub(crate) static $table: &[EventInfo] = &[$( EventInfo {
            name: $name,
            data: <events!(@data $($data)?) as Described>::describe,
            rate_limit: events!(@limit $($seconds)?),
        }, )*]; )*
    };
    (@data) => { Empty };
    (@data $data:ty) => { $data };
    (@pattern $enum:ident $variant:ident $value:ident) => { $enum::$variant };
    (@pattern $enum:ident $variant:ident $value:ident $data:ty) => { $enum::$variant($value) };
    (@value $value:ident) => { None };
    (@value $value:ident $data:ty) => { Some(json!($value)) };
    (@limit) => { None };
    (@limit $seconds:literal) => { Some(Duration::from_secs($seconds)) };
}

events! {
    /// An event with its data.
    pub enum EventKind {
        MACHINE_EVENTS {
            /// The guest's CPUs stopped.
            Stop = "STOP",
            /// The guest's CPUs go on.
            Resume = "RESUME",
            /// The guest is going down.
            Shutdown(ShutdownData) = "SHUTDOWN",
            /// The guest was reset.
            Reset(ShutdownData) = "RESET",
            /// The power button was pressed.
            Powerdown = "POWERDOWN",
            /// The guest's kernel panicked.
            GuestPanicked(GuestPanickedData) = "GUEST_PANICKED",
            /// A migration changed its state. Only with the `events` capability.
            Migration(MigrationData) = "MIGRATION",
            /// A migration began another round. Only with the `events` capability.
            MigrationPass(MigrationPassData) = "MIGRATION_PASS",
        }
        BLOCK_EVENTS {
            /// A job changed its state.
            JobStatusChange(JobStatusChangeData) = "JOB_STATUS_CHANGE",
            /// A block job can be completed.
            BlockJobReady(BlockJobData) = "BLOCK_JOB_READY",
            /// A block job is over, well or not.
            BlockJobCompleted(BlockJobCompletedData) = "BLOCK_JOB_COMPLETED",
            /// A block job was cancelled.
            BlockJobCancelled(BlockJobData) = "BLOCK_JOB_CANCELLED",
            /// A block job met an error.
            BlockJobError(BlockJobErrorData) = "BLOCK_JOB_ERROR",
            /// A block job waits to be finalized.
            BlockJobPending(BlockJobPendingData) = "BLOCK_JOB_PENDING",
            /// A guest's request failed. A guest can cause any number of them.
            BlockIoError(BlockIoErrorData) = "BLOCK_IO_ERROR" limit 1,
            /// An image contradicts itself.
            BlockImageCorrupted(BlockImageCorruptedData) = "BLOCK_IMAGE_CORRUPTED",
            /// An export is gone.
            BlockExportDeleted(BlockExportDeletedData) = "BLOCK_EXPORT_DELETED",
        }
    }
}

object! {
    /// Data of `SHUTDOWN` and `RESET`.
    pub struct ShutdownData {
        /// Whether the guest asked for it.
        guest: bool = "guest",
        /// Why.
        reason: ShutdownCause = "reason",
    }
}

object! {
    /// Data of `GUEST_PANICKED`.
    pub struct GuestPanickedData {
        /// What happens to the guest.
        action: PanicAction = "action",
    }
}

object! {
    /// Data of `JOB_STATUS_CHANGE`.
    pub struct JobStatusChangeData {
        /// The job.
        id: String = "id",
        /// Its new state.
        status: JobStatus = "status",
    }
}

object! {
    /// Data of `BLOCK_JOB_READY` and `BLOCK_JOB_CANCELLED`.
    pub struct BlockJobData {
        /// What the job does.
        kind: JobType = "type",
        /// The job.
        device: String = "device",
        /// Bytes to do in all.
        len: i64 = "len",
        /// Bytes done.
        offset: i64 = "offset",
        /// Its limit in bytes/s.
        speed: i64 = "speed",
    }
}

object! {
    /// Data of `BLOCK_JOB_COMPLETED`.
    pub struct BlockJobCompletedData {
        /// What the job did.
        kind: JobType = "type",
        /// The job.
        device: String = "device",
        /// Bytes to do in all.
        len: i64 = "len",
        /// Bytes done.
        offset: i64 = "offset",
        /// Its limit in bytes/s.
        speed: i64 = "speed",
        /// Why it failed, if it did.
        error: Option<String> = "error",
    }
}

object! {
    /// Data of `BLOCK_JOB_ERROR`.
    pub struct BlockJobErrorData {
        /// The job.
        device: String = "device",
        /// What it was doing.
        operation: IoOperation = "operation",
        /// What was done about it.
        action: ErrorAction = "action",
    }
}

object! {
    /// Data of `BLOCK_JOB_PENDING`.
    pub struct BlockJobPendingData {
        /// What the job does.
        kind: JobType = "type",
        /// The job.
        id: String = "id",
    }
}

object! {
    /// Data of `BLOCK_IO_ERROR`.
    pub struct BlockIoErrorData {
        /// Name of the device's root.
        device: String = "device",
        /// The node, where it has a name.
        node_name: Option<String> = "node-name",
        /// What the guest was doing.
        operation: IoOperation = "operation",
        /// What was done about it.
        action: ErrorAction = "action",
        /// Whether there was no space left.
        nospace: Option<bool> = "nospace",
        /// The error in words.
        reason: String = "reason",
    }
}

object! {
    /// Data of `BLOCK_IMAGE_CORRUPTED`.
    pub struct BlockImageCorruptedData {
        /// Name of the device's root, empty if there is none.
        device: String = "device",
        /// The node, where it has a name.
        node_name: Option<String> = "node-name",
        /// What is wrong.
        msg: String = "msg",
        /// Where in the image a write would have done damage.
        offset: Option<i64> = "offset",
        /// How long that write was.
        size: Option<i64> = "size",
        /// Whether the image can no longer be written.
        fatal: bool = "fatal",
    }
}

object! {
    /// Data of `BLOCK_EXPORT_DELETED`.
    pub struct BlockExportDeletedData {
        /// The export.
        id: String = "id",
    }
}

object! {
    /// Data of `MIGRATION`.
    pub struct MigrationData {
        /// The new state.
        status: MigrationStatus = "status",
    }
}

object! {
    /// Data of `MIGRATION_PASS`.
    pub struct MigrationPassData {
        /// Number of the round, from 1.
        pass: i64 = "pass",
    }
}

object! {
    /// When an event happened, in real time since 1970.
    #[derive(Copy, Eq)]
    pub struct Timestamp {
        /// Seconds.
        seconds: i64 = "seconds",
        /// The rest, 0 to 999,999.
        microseconds: i64 = "microseconds",
    }
}

impl Timestamp {
    /// The host's real time. A clock set before 1970 gives 1970.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            microseconds: i64::from(since.subsec_micros()),
        }
    }
}

/// An event as it goes over the wire, or as a client received it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened.
    pub timestamp: Timestamp,
    /// Its name.
    #[serde(rename = "event")]
    pub name: String,
    /// Its data; an event without any has no such member.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

impl Event {
    /// An event of ours.
    pub fn new(kind: EventKind, timestamp: Timestamp) -> Self {
        let (name, data) = kind.into_parts();
        Event { timestamp, name: name.to_owned(), data: data.unwrap_or(Value::Null) }
    }

    /// What the table says of it.
    pub fn info(&self) -> Option<&'static EventInfo> {
        interface::MACHINE.events().find(|info| info.name == self.name)
    }
}
