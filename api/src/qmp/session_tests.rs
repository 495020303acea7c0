use super::*;
use crate::{
    command::{BlockCommand, BlockJobDevice, JobId, MachineCommand},
    event::{EventKind, Timestamp},
};

const NEGOTIATE: &[u8] = b"{'execute':'qmp_capabilities'}";

/// A session past its greeting and negotiation.
fn negotiated(limits: Limits) -> Session {
    let mut session = Session::new(&crate::interface::MACHINE, limits);
    session.take_output();
    assert!(session.feed(NEGOTIATE).is_empty());
    session.take_output();
    session
}

fn text(session: &mut Session) -> String {
    String::from_utf8(session.take_output()).unwrap()
}

fn execute(action: &SessionAction) -> (Token, &Command) {
    let SessionAction::Execute { token, command } = action;
    (*token, command)
}

fn stop_event() -> Event {
    Event::new(EventKind::Stop, Timestamp { seconds: 1, microseconds: 2 })
}

#[test]
fn the_greeting_comes_first() {
    let mut session = Session::new(&crate::interface::MACHINE, Limits::default());
    let package = concat!("ferry ", env!("CARGO_PKG_VERSION"));
    let expected = format!(
        "{{\"QMP\": {{\"capabilities\": [\"oob\"], \"version\": {{\"package\": \"{package}\", \
         \"qemu\": {{\"major\": 5, \"micro\": 0, \"minor\": 0}}}}}}}}\r\n"
    );
    assert_eq!(text(&mut session), expected);
}

#[test]
fn events_before_negotiation_are_lost() {
    let mut session = Session::new(&crate::interface::MACHINE, Limits::default());
    session.take_output();
    session.event(&stop_event());
    assert_eq!(text(&mut session), "");
    session.feed(NEGOTIATE);
    session.event(&stop_event());
    let event = "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"STOP\"}";
    assert_eq!(text(&mut session), format!("{{\"return\": {{}}}}\r\n{event}\r\n"));
}

#[test]
fn commands_are_carried_out_one_after_the_other() {
    let mut session = negotiated(Limits::default());
    let actions = session.feed(b"{'execute':'stop','id':1}{'execute':'cont','id':2}foo {'x':1}");
    let (stop, command) = execute(&actions[0]);
    assert_eq!((actions.len(), command), (1, &Command::Machine(MachineCommand::Stop)));
    assert_eq!(text(&mut session), "", "replies keep the order, those of errors as well");

    let actions = session.reply(stop, Ok(json!({})));
    let (cont, command) = execute(&actions[0]);
    assert_eq!(
        (actions.len(), command),
        (1, &Command::Machine(MachineCommand::Cont(<_>::default())))
    );
    assert_eq!(text(&mut session), "{\"return\": {}, \"id\": 1}\r\n");

    assert!(session.reply(cont, Err(QmpError::generic("no"))).is_empty());
    let replies = text(&mut session);
    let lines: Vec<_> = replies.lines().collect();
    let no = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}";
    assert_eq!((lines.len(), lines[0]), (3, no));
    assert!(lines[1].contains("invalid keyword 'foo'") && lines[2].contains("'x' is unexpected"));
}

#[test]
fn arguments_arrive_typed() {
    let mut session = negotiated(Limits::default());
    let actions = session.feed(b"{'execute':'block-job-pause','arguments':{'device':'a\\u00e9'}}");
    let device = "a\u{e9}".to_owned();
    let expected = Command::Block(BlockCommand::BlockJobPause(BlockJobDevice { device }));
    assert_eq!(execute(&actions[0]).1, &expected);
}

#[test]
fn a_result_nobody_waits_for_is_ignored() {
    let mut session = negotiated(Limits::default());
    let actions = session.feed(b"{'execute':'job-pause','arguments':{'id':'j'}}");
    let (token, command) = execute(&actions[0]);
    assert_eq!(command, &Command::Block(BlockCommand::JobPause(JobId { id: "j".into() })));
    assert!(session.reply(Token(token.0 + 1), Ok(json!({}))).is_empty());
    session.reply(token, Ok(json!({})));
    session.reply(token, Ok(json!({})));
    assert_eq!(text(&mut session), "{\"return\": {}}\r\n");
}

#[test]
fn eight_requests_wait_and_then_the_socket_is_left_alone() {
    let mut session = negotiated(Limits::default());
    let one = b"{'execute':'stop'}";
    let mut actions = session.feed(&one.repeat(8));
    assert!(session.wants_input(), "one under way, seven in the queue");
    assert!(session.feed(&one.repeat(5)).is_empty());
    assert!(!session.wants_input());
    let mut done = 0;
    while let Some(SessionAction::Execute { token, .. }) = actions.pop() {
        done += 1;
        actions = session.reply(token, Ok(json!({})));
        assert!(actions.len() <= 1);
    }
    assert_eq!(done, 13);
    assert!(session.wants_input());
}

#[test]
fn an_unread_answer_stops_further_requests() {
    let limits = Limits { output_high_water: 100, ..Limits::default() };
    let mut session = negotiated(limits);
    assert!(session.feed(&b"{'execute':'query-commands'}".repeat(3)).is_empty());
    assert!(!session.wants_input());
    let first = session.output().len();
    assert_eq!(session.output().iter().filter(|byte| **byte == b'\n').count(), 1);
    assert!(session.sent(first - 50).is_empty());
    let rest = text(&mut session);
    assert_eq!(rest.matches("\r\n").count(), 2, "the second one, since the first is nearly read");
    session.feed(&[]);
    assert_eq!(text(&mut session).matches("\r\n").count(), 1);
    assert!(session.wants_input());
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let limits = Limits { output_max: 1000, ..Limits::default() };
    let mut session = negotiated(limits);
    for _ in 0..20 {
        session.event(&stop_event());
    }
    assert_eq!(session.end(), Some(SessionEnd::OutputFull));
    assert!(!session.wants_input() && !session.has_output());
    assert!(session.feed(b"{'execute':'stop'}").is_empty());
    assert!(!session.has_output());
}

#[test]
fn a_driver_that_reads_too_much_is_noticed() {
    let mut session = negotiated(Limits::default());
    session.feed(&b"{'execute':'stop'}".repeat(20));
    session.feed(&vec![b' '; 3 << 20]);
    assert_eq!(session.end(), Some(SessionEnd::InputFull));
}

#[test]
fn out_of_band_requests_do_not_wait_for_their_turn() {
    let mut session = Session::new(&crate::interface::MACHINE, Limits::default());
    session.feed(b"{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}");
    session.take_output();
    let actions = session.feed(b"{'execute':'stop','id':1}{'exec-oob':'query-status','id':2}");
    let refused = "{\"error\": {\"class\": \"GenericError\", \
                   \"desc\": \"The command query-status does not support OOB\"}, \"id\": 2}\r\n";
    assert_eq!(text(&mut session), refused);
    session.reply(execute(&actions[0]).0, Ok(json!({})));
    assert_eq!(text(&mut session), "{\"return\": {}, \"id\": 1}\r\n");
}

#[test]
fn no_arguments_are_acted_upon_before_all_are_right() {
    let mut session = negotiated(Limits::default());
    let wrong = b"{'execute':'block-job-cancel','arguments':{'device':'j','force':true,'z':1}}";
    assert!(session.feed(wrong).is_empty());
    assert!(text(&mut session).contains("Parameter 'z' is unexpected"));
}
