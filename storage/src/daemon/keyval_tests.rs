use ferry_api::command::{BlockExportOptions, BlockdevOptions, NbdServerOptions, ObjectOptions};
use serde_json::json;

use super::*;

fn read<T: Described + DeserializeOwned + serde::Serialize>(text: &str, implied: &str) -> Value {
    serde_json::to_value(parse::<T>(text, implied).unwrap()).unwrap()
}

fn refused(text: &str) -> String {
    parse::<BlockdevOptions>(text, "driver").unwrap_err().desc
}

#[test]
fn pairs_say_the_same_as_json() {
    let text = "raw,node-name=d0,read-only=on,offset=1024,size=1M,file.driver=file,\
                file.filename=/a,,b=c,file.cache.direct=off";
    let expected = json!({
        "driver": "raw", "node-name": "d0", "read-only": true, "offset": 1024, "size": 1 << 20,
        "file": {"driver": "file", "filename": "/a,b=c", "cache": {"direct": false}},
    });
    assert_eq!(read::<BlockdevOptions>(text, "driver"), expected);
    assert_eq!(read::<BlockdevOptions>(&expected.to_string(), "driver"), expected);
    let text = "nbd,id=e,node-name=d0,bitmaps.0=a,bitmaps.1.node=n,bitmaps.1.name=b,writable=on";
    let expected = json!({
        "type": "nbd", "id": "e", "node-name": "d0", "writable": true,
        "bitmaps": ["a", {"node": "n", "name": "b"}],
    });
    assert_eq!(read::<BlockExportOptions>(text, "type"), expected);
    let text = "addr.type=inet,addr.host=::1,addr.port=10809,max-connections=3";
    let expected = json!({
        "addr": {"type": "inet", "host": "::1", "port": "10809"}, "max-connections": 3
    });
    assert_eq!(read::<NbdServerOptions>(text, "addr"), expected);
    let text = "throttle-group,id=t,limits.bps-total=4096";
    let expected = json!({"qom-type": "throttle-group", "id": "t", "limits": {"bps-total": 4096}});
    assert_eq!(read::<ObjectOptions>(text, "qom-type"), expected);
}

#[test]
fn what_cannot_be_read_is_named() {
    assert_eq!(refused("raw,file"), "Expected '=' after parameter 'file'");
    assert_eq!(refused("raw"), "Parameter 'file' is missing");
    assert_eq!(refused("nosuch"), "Parameter 'driver' does not accept value 'nosuch'");
    let twice = refused("raw,file=x,file.driver=null-co");
    assert_eq!(twice, "Parameters 'file.*' used inconsistently");
    let odd = refused("null-co,size=many");
    assert_eq!(odd, "Invalid parameter type for 'size', expected: integer");
    let odd = refused("null-co,read-zeroes=perhaps");
    assert_eq!(odd, "Invalid parameter type for 'read-zeroes', expected: boolean");
    assert_eq!(refused("null-co,a..b=c"), "Invalid parameter 'a..b'");
    assert!(refused("{").starts_with("JSON parse error"));
    let deep = format!("null-co,{}=1", ["a"; 200].join("."));
    assert!(refused(&deep).starts_with("Invalid parameter 'a.a"));
}
