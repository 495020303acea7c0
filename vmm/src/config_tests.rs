//! The command line's grammar.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

fn parse(words: &[&str]) -> Result<Config> {
    Cli::try_parse_from([&["ferry"], words].concat()).unwrap().run.try_into()
}

fn refusal(words: &[&str]) -> String {
    parse(words).unwrap_err().line()
}

#[test]
fn everything_given_arrives() {
    let config = parse(&[
        "--kernel",
        "k",
        "--initrd",
        "i",
        "--cmdline",
        "a b",
        "--memory",
        "2G",
        "--cpus",
        "3",
        "--disk",
        "path=a,,b.img,format=raw,id=root,readonly=on,direct=on,serial=S1,queues=2",
        "--disk",
        "path=c",
        "--serial",
        "file=/tmp/s",
        "--qmp",
        "unix:/tmp/q",
        "--paused",
        "--name",
        "n",
        "--on-reboot",
        "reset",
    ])
    .unwrap();
    assert_eq!((config.memory, config.cpus, config.paused), (2 << 30, 3, true));
    assert_eq!(
        config.disks[0],
        DiskConfig {
            path: "a,b.img".into(),
            format: Some(DiskFormat::Raw),
            id: "root".into(),
            readonly: true,
            direct: true,
            serial: Some("S1".into()),
            queues: Some(2),
        }
    );
    assert_eq!((config.disks[1].id.as_str(), config.disks[1].readonly), ("disk1", false));
    assert_eq!(config.serial, SerialConfig::File("/tmp/s".into()));
    assert_eq!(config.qmp, Some("/tmp/q".into()));
    assert_eq!(config.on_reboot, OnReboot::Reset);
}

#[test]
fn memory_sizes() {
    for (text, bytes) in [("64", 64 * MIB), ("4096K", 4 * MIB), ("1g", 1 << 30), ("1T", 1 << 40)] {
        assert_eq!(parse_memory(text).unwrap(), bytes, "{text}");
    }
    for text in ["", "M", "-1M", "1.5G", "1X", "2T", "99999999999999999999", "5121K"] {
        assert!(parse_memory(text).is_err(), "{text}");
    }
    assert!(refusal(&["--kernel", "k", "--memory", "1M"]).contains("too little memory"));
}

#[test]
fn each_mistake_is_named_on_one_line() {
    let base = ["--kernel", "k"];
    for (words, part) in [
        (vec!["--disk", "format=raw"], "no path"),
        (vec!["--disk", "path=x,format=vhdx"], "format=vhdx: give raw or qcow2"),
        (vec!["--disk", "path=x,cache=none"], "unknown option 'cache'"),
        (vec!["--disk", "path=x,queues=0"], "queues=0"),
        (vec!["--disk", "path=x,readonly=maybe"], "on or off"),
        (vec!["--disk", "path=x,id=1"], "id=1"),
        (vec!["--disk", "path=x,id=a", "--disk", "path=y,id=a"], "two disks"),
        (vec!["--disk", "path=x,serial=123456789012345678901"], "20 bytes"),
        (vec!["--cpus", "0"], "--cpus 0"),
        (vec!["--cpus", "300"], "--cpus 300"),
        (vec!["--serial", "pty"], "--serial pty"),
        (vec!["--qmp", "tcp:1"], "unix:PATH"),
        (vec!["--incoming", "tcp:localhost"], "tcp:HOST:PORT, unix:PATH or defer"),
    ] {
        let line = refusal(&[&base[..], &words[..]].concat());
        assert!(line.contains(part) && !line.contains('\n'), "{words:?}: {line}");
    }
    assert!(refusal(&[]).contains("--kernel"));
    assert!(parse(&["--incoming", "defer"]).is_ok());
}
