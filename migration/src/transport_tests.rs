use super::*;

fn parse(text: &str) -> String {
    match Uri::parse(text) {
        Ok(uri) => uri.to_string(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            error.to_string()
        }
    }
}

#[test]
fn uris_are_read_as_qemu_reads_them() {
    for uri in ["tcp:host:4444", "tcp:127.0.0.1:0", "tcp:[::1]:4444", "tcp::4444", "unix:/a/b"] {
        assert_eq!(parse(uri), uri);
    }
    for uri in ["", "tcp", "host:4444", "exec:cat", "rdma:host:1", "file:/x"] {
        assert_eq!(parse(uri), "Parameter 'uri' expects a valid migration protocol");
    }
    for address in ["", "host", "host:", "host:x", "host:65536", "host:-1", "::1:5", "[::1:5"] {
        assert_eq!(parse(&format!("tcp:{address}")), format!("error parsing address '{address}'"));
    }
    assert!(parse("unix:").contains("too long or empty"));
    assert!(parse(&format!("unix:/{}", "x".repeat(107))).contains("too long or empty"));
    assert_eq!(parse(&format!("unix:/{}", "x".repeat(106))).len(), 5 + 107);
}

#[test]
fn a_refused_connection_names_the_address_and_the_reason() {
    let listener = Listener::bind(&Uri::parse("tcp:127.0.0.1:0").unwrap()).unwrap();
    let uri = listener.uri().unwrap();
    drop(listener);
    let error = connect(&uri, &Canceller::new().unwrap()).unwrap_err();
    let Uri::Tcp { host, port } = uri else { panic!("it is tcp") };
    let expected = format!("Failed to connect to '{host}:{port}': connect: Connection refused");
    assert_eq!(error.report(), expected);
}

#[test]
fn a_listener_that_nobody_calls_can_be_cancelled() {
    let listener = Listener::bind(&Uri::parse("tcp:127.0.0.1:0").unwrap()).unwrap();
    let cancel = Canceller::new().unwrap();
    let other = cancel.clone();
    let thread = std::thread::Builder::new()
        .name("canceller".into())
        .spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            other.cancel().unwrap()
        })
        .unwrap();
    assert_eq!(listener.accept(&cancel).unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(thread.join().unwrap());
    assert_eq!(listener.accept(&cancel).unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn a_stale_socket_is_replaced_and_a_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let uri = Uri::Unix(path.clone());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Listener::bind(&uri).unwrap());
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    let text = Listener::bind(&uri).unwrap_err().report();
    assert!(text.contains("cannot listen on 'unix:") && text.contains("in use"), "{text}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_listener_that_goes_leaves_its_successor_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let uri = Uri::Unix(path.clone());
    let first = Listener::bind(&uri).unwrap();
    let second = Listener::bind(&uri).unwrap();
    drop(first);
    let cancel = Canceller::new().unwrap();
    let caller = connect(&uri, &cancel).unwrap();
    second.accept(&cancel).unwrap();
    drop((caller, second));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_socket_whose_name_just_fits_is_listened_on() {
    let dir = tempfile::tempdir().unwrap();
    // sun_path holds 108 bytes, one of them the end.
    let name = "s".repeat(107 - dir.path().as_os_str().len() - 1);
    let listener = Listener::bind(&Uri::Unix(dir.path().join(&name))).unwrap();
    assert!(dir.path().join(name).exists());
    drop(listener);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn tcp_answers_do_not_wait_for_more() {
    let listener = Listener::bind(&Uri::parse("tcp:127.0.0.1:0").unwrap()).unwrap();
    let cancel = Canceller::new().unwrap();
    let one = connect(&listener.uri().unwrap(), &cancel).unwrap();
    let other = listener.accept(&cancel).unwrap();
    for stream in [one, other] {
        assert!(TcpStream::from(stream.fd).nodelay().unwrap());
    }
}

#[test]
fn a_stream_with_two_thousand_pieces_arrives_in_order() {
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    let cancel = Canceller::new().unwrap();
    let mut one = Stream::from_unix(a, cancel.clone()).unwrap();
    let mut other = Stream::from_unix(b, cancel).unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(2000 * 7).collect();
    let mut pieces: Vec<Piece<'_>> = bytes.chunks(7).map(Piece::bytes).collect();
    one.write_all(&mut pieces).unwrap();
    let mut got = vec![0; bytes.len()];
    let mut pieces: Vec<PieceMut<'_>> = got.chunks_mut(11).map(PieceMut::bytes).collect();
    other.read_all(&mut pieces, Duration::from_secs(1)).unwrap();
    assert_eq!(got, bytes);
}
