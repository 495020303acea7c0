use ferry_api::command::ChardevInfo;

use super::*;

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn the_spelling_of_qemus_daemon_is_understood() {
    let args = StorageArgs {
        blockdev: strings(&[
            "driver=file,node-name=d,filename=/x",
            r#"{"driver": "null-co", "node-name": "n"}"#,
        ]),
        nbd_server: Some("addr.type=unix,addr.path=/nbd".to_owned()),
        export: strings(&["type=nbd,id=e,node-name=d,writable=on"]),
        chardev: strings(&[
            "socket,path=/q1,server=on,wait=off,id=a",
            "socket,id=b,path=/q2,server,nowait",
            "socket,id=c,path=/q3,server=off",
            "stdio,id=d",
        ]),
        monitor: strings(&["chardev=b", "a,mode=control", "c", "d"]),
        qmp: strings(&["unix:/q0,server=on"]),
        ..StorageArgs::default()
    };
    let plan = Plan::try_from(args).unwrap();
    assert_eq!((plan.nodes.len(), plan.exports.len()), (2, 1));
    assert!(plan.nbd_server.is_some());
    let monitors: Vec<_> = plan.monitors.iter().map(Chardev::info).collect();
    let expected = [
        ("compat_monitor0", "unix:/q0,server=on"),
        ("b", "unix:/q2,server=on"),
        ("a", "unix:/q1,server=on"),
        ("c", "unix:/q3"),
        ("d", "stdio"),
    ];
    assert_eq!(monitors, expected.map(|(label, filename)| ChardevInfo::new(label, filename)));
}

#[test]
fn what_is_wrong_is_said_with_its_option() {
    let refused = |args: StorageArgs| Plan::try_from(args).unwrap_err().to_string();
    let args = StorageArgs { blockdev: strings(&["raw"]), ..StorageArgs::default() };
    assert_eq!(refused(args), "--blockdev raw: Parameter 'file' is missing");
    let args = StorageArgs { monitor: strings(&["chardev=x"]), ..StorageArgs::default() };
    assert_eq!(refused(args), "--monitor chardev=x: chardev \"x\" not found");
    for text in ["stdio", "stdio,id=x,path=/p", "socket,id=x", "socket,path=/p", "pty,id=x"] {
        let args = StorageArgs { chardev: strings(&[text]), ..StorageArgs::default() };
        assert!(refused(args).starts_with(&format!("--chardev {text}: ")));
    }
    let stdio = StorageArgs {
        chardev: strings(&["stdio,id=x"]),
        monitor: strings(&["x"]),
        ..StorageArgs::default()
    };
    let twice = StorageArgs { monitor: strings(&["x", "x"]), ..stdio.clone() };
    assert!(refused(twice).contains("cannot use stdio by multiple"));
    let daemonize = StorageArgs { daemonize: true, ..stdio };
    assert!(refused(daemonize).contains("cannot use stdio with --daemonize"));
}
