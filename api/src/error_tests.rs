use ErrorClass::{CommandNotFound, DeviceNotActive, DeviceNotFound, GenericError};

use super::*;

fn same<const N: usize>(expected: [(QmpError, ErrorClass, &str); N]) {
    for (error, class, desc) in expected {
        assert_eq!((error.class, error.desc.as_str()), (class, desc));
    }
}

/// Clients match classes, and some of them texts: both are part of the interface.
#[test]
fn classes_and_texts_are_those_that_clients_know() {
    same([
        (QmpError::json_syntax("x"), GenericError, "JSON parse error, x"),
        (QmpError::not_an_object(), GenericError, "QMP input must be a JSON object"),
        (QmpError::unexpected_member("x"), GenericError, "QMP input member 'x' is unexpected"),
        (
            QmpError::member_type("execute", "a string"),
            GenericError,
            "QMP input member 'execute' must be a string",
        ),
        (
            QmpError::clashing_members("execute", "exec-oob"),
            GenericError,
            "QMP input member 'execute' clashes with 'exec-oob'",
        ),
        (QmpError::no_command(), GenericError, "QMP input lacks member 'execute'"),
        (QmpError::command_not_found("x"), CommandNotFound, "The command x has not been found"),
        (
            QmpError::not_negotiated(),
            CommandNotFound,
            "Expecting capabilities negotiation with 'qmp_capabilities'",
        ),
        (
            QmpError::already_negotiated(),
            CommandNotFound,
            "Capabilities negotiation is already complete, command ignored",
        ),
        (QmpError::not_out_of_band("x"), GenericError, "The command x does not support OOB"),
        (QmpError::missing_argument("a.b"), GenericError, "Parameter 'a.b' is missing"),
        (QmpError::unexpected_argument("a"), GenericError, "Parameter 'a' is unexpected"),
        (
            QmpError::argument_type("a", "string"),
            GenericError,
            "Invalid parameter type for 'a', expected: string",
        ),
        (QmpError::argument_value("a", "uint64"), GenericError, "Parameter 'a' expects uint64"),
        (
            QmpError::unknown_value("a", "b"),
            GenericError,
            "Parameter 'a' does not accept value 'b'",
        ),
        (
            QmpError::negative_size("offset"),
            GenericError,
            "Parameter 'offset' expects a non-negative number below 2^64",
        ),
        (
            QmpError::negative_speed(),
            GenericError,
            "Parameter 'speed' expects a non-negative value",
        ),
        (QmpError::invalid_argument("a"), GenericError, "Invalid parameter 'a'"),
    ]);
}

#[test]
fn what_commands_meet_has_the_known_texts() {
    same([
        (QmpError::block_job_not_found("j"), DeviceNotActive, "Block job 'j' not found"),
        (QmpError::job_not_found(), GenericError, "Job not found"),
        (
            QmpError::job_verb("x", "running", "complete"),
            GenericError,
            "Job 'x' in state 'running' cannot accept command verb 'complete'",
        ),
        (
            QmpError::node_or_device_not_found("x"),
            GenericError,
            "Cannot find device='x' nor node-name='x'",
        ),
        (QmpError::node_not_found("x"), GenericError, "Failed to find node with node-name='x'"),
        (QmpError::device_not_found("x"), DeviceNotFound, "Device 'x' not found"),
        (
            QmpError::root_without_name(),
            GenericError,
            "'node-name' must be specified for the root node",
        ),
        (
            QmpError::migration_in_progress(),
            GenericError,
            "There's a migration process in progress",
        ),
        (
            QmpError::migration_protocol(),
            GenericError,
            "Parameter 'uri' expects a valid migration protocol",
        ),
        (
            QmpError::downtime_limit(),
            GenericError,
            "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms",
        ),
        (
            QmpError::not_incoming(),
            GenericError,
            "'-incoming' was not specified on the command line",
        ),
    ]);
}

#[test]
fn an_error_is_an_object_of_class_and_text() {
    let json = serde_json::to_string(&QmpError::job_not_found()).unwrap();
    assert_eq!(json, r#"{"class":"GenericError","desc":"Job not found"}"#);
}
