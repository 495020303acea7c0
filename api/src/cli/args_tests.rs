use super::*;

#[test]
fn sizes_may_have_a_suffix() {
    assert_eq!(parse_size("0"), Ok(0));
    assert_eq!(parse_size("512"), Ok(512));
    assert_eq!(parse_size("4k"), Ok(4096));
    assert_eq!(parse_size("64M"), Ok(64 << 20));
    assert_eq!(parse_size("10G"), Ok(10 << 30));
    assert_eq!(parse_size("1T"), Ok(1 << 40));
    for wrong in ["", "M", "-1", "1.5G", "12X", "99999999999999999999", "99999999999T", "1é"] {
        let text = parse_size(wrong).unwrap_err();
        assert!(text.contains(&format!("'{wrong}' is no size")), "{text}");
    }
}

#[test]
fn sockets_are_written_as_for_run() {
    assert_eq!(parse_socket("unix:/a/b"), Ok(PathBuf::from("/a/b")));
    assert_eq!(parse_socket("a:b"), Ok(PathBuf::from("a:b")));
    parse_socket("unix:").unwrap_err();
}
