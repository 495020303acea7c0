//! The commands of QMP that are the machine's; all others are the block layer's.

use std::rc::Rc;

use ferry_api::command::{
    ChardevInfo, Command, KvmInfo, MachineCommand, NameInfo, ProcessCommand, StatusInfo, UuidInfo,
    qmp_label, reply,
};
use ferry_api::schema::Empty;
use ferry_api::{Controller, LocalBoxFuture, QmpError};
use serde_json::Value;

use super::Control;
use super::run_state::qmp_run_state;
use crate::config::SerialConfig;

impl Controller for Control {
    fn execute(self: Rc<Self>, command: Command) -> LocalBoxFuture<Result<Value, QmpError>> {
        Box::pin(async move {
            match command {
                Command::Process(ProcessCommand::Quit) => {
                    self.quit().await?;
                    reply(&Empty {})
                }
                Command::Process(ProcessCommand::QueryChardev) => reply(&self.chardevs()),
                Command::Machine(command) => self.execute_machine(command).await,
                Command::Block(command) => self.storage.execute(command).await,
            }
        })
    }
}

/// What QEMU answers when it was given none.
const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";

impl Control {
    async fn execute_machine(self: &Rc<Self>, command: MachineCommand) -> Result<Value, QmpError> {
        match command {
            MachineCommand::QueryStatus => return self.query_status(),
            MachineCommand::QueryName => {
                return reply(&NameInfo { name: self.config.name.clone() });
            }
            MachineCommand::QueryUuid => return reply(&UuidInfo { uuid: NO_UUID.to_owned() }),
            MachineCommand::QueryKvm => return reply(&KvmInfo { enabled: true, present: true }),
            MachineCommand::QueryMigrate => return reply(&self.query_migrate()),
            MachineCommand::QueryMigrateParameters => {
                return reply(&self.query_migrate_parameters());
            }
            MachineCommand::QueryMigrateCapabilities => {
                return reply(&self.query_migrate_capabilities());
            }
            MachineCommand::Stop => self.stop().await?,
            MachineCommand::Cont(arguments) => self.cont(arguments.force.unwrap_or(false)).await?,
            MachineCommand::SystemPowerdown => self.power_down()?,
            MachineCommand::SystemReset => self.system_reset().await?,
            MachineCommand::Migrate(arguments) => self.migrate(arguments)?,
            MachineCommand::MigrateIncoming(arguments) => self.migrate_incoming(&arguments.uri)?,
            MachineCommand::MigrateCancel => self.migrate_cancel()?,
            MachineCommand::MigrateSetParameters(arguments) => {
                self.migrate_set_parameters(&arguments)?;
            }
            MachineCommand::MigrateSetCapabilities(arguments) => {
                self.migrate_set_capabilities(arguments)?;
            }
        }
        reply(&Empty {})
    }

    /// The serial port, and the socket through which this was asked.
    fn chardevs(&self) -> Vec<ChardevInfo> {
        let label = "serial0";
        let serial = match &self.config.serial {
            SerialConfig::Stdio => ChardevInfo::new(label, "stdio"),
            SerialConfig::File(_) => ChardevInfo::new(label, "file"),
            SerialConfig::Socket(path) => ChardevInfo::listening(label, path),
            SerialConfig::None => ChardevInfo::new(label, "null"),
        };
        let qmp = self.config.qmp.as_deref();
        let qmp = qmp.map(|path| ChardevInfo::listening(&qmp_label(0), path));
        [serial].into_iter().chain(qmp).collect()
    }

    fn query_status(&self) -> Result<Value, QmpError> {
        let state = self.machine.run_state();
        reply(&StatusInfo {
            running: state == crate::lifecycle::RunState::Running,
            singlestep: false,
            status: qmp_run_state(state),
        })
    }
}
