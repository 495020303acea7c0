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
        ]),
        monitor: strings(&["chardev=b", "a,mode=control"]),
        qmp: strings(&["unix:/q0,server=on"]),
        ..StorageArgs::default()
    };
    let plan = Plan::try_from(args).unwrap();
    assert_eq!((plan.nodes.len(), plan.exports.len()), (2, 1));
    assert!(plan.nbd_server.is_some());
    let paths: Vec<_> = plan.monitors.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(paths, ["/q0", "/q2", "/q1"]);
}

#[test]
fn what_is_wrong_is_said_with_its_option() {
    let refused = |args: StorageArgs| Plan::try_from(args).unwrap_err().to_string();
    let args = StorageArgs { blockdev: strings(&["raw"]), ..StorageArgs::default() };
    assert_eq!(refused(args), "--blockdev raw: Parameter 'file' is missing");
    let args = StorageArgs { monitor: strings(&["chardev=x"]), ..StorageArgs::default() };
    assert_eq!(refused(args), "--monitor chardev=x: chardev \"x\" not found");
    for text in ["stdio,id=x", "socket,id=x,path=/p", "socket,path=/p,server=on"] {
        let args = StorageArgs { chardev: strings(&[text]), ..StorageArgs::default() };
        assert!(refused(args).starts_with(&format!("--chardev {text}: ")));
    }
}
