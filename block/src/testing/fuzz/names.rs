//! What users name disks by: names that are options, and options as texts.

use serde_json::{Map, Value};

use crate::keyval::{place, split};
use crate::open::{BlockdevOptions, json_name, protocol_name};

/// Reads the bytes in each of the ways in which a name or an option may be given; how many of them
/// led to the options of a node.
///
/// # Panics
/// There is a mistake in what is tested.
pub fn fuzz_names(data: &[u8]) -> u32 {
    let text = String::from_utf8_lossy(data);
    let mut members = Map::new();
    for part in split(&text) {
        let (key, value) = part.split_once('=').unwrap_or((&part, "on"));
        if place(&mut members, key, value.into()).is_err() {
            break;
        }
    }
    let named = [json_name(&text), protocol_name(&text)].into_iter().flatten();
    let options = named.flatten().chain([Value::Object(members)]);
    let is_node = |options| serde_json::from_value::<BlockdevOptions>(options).is_ok();
    options.map(|options| u32::from(is_node(options))).sum()
}

/// What users write.
pub fn name_seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 8] = [
        b"json:{'driver':'qcow2','file.driver':'file','file.filename':'a\\'b',\
          \"lazy-refcounts\":true,\"backing\":null,'overlap-check':{'template':'all'}}",
        br#"json:{"driver":"blkdebug","image":"d0","inject-error":[{"event":"none","errno":5}]}"#,
        b"nbd+unix:///name?socket=/x%20y",
        b"nbds://user@[::1]:10809/a%2fb",
        b"nbd:unix:/x:exportname=y",
        b"blkdebug:rules:nbd://host/export",
        b"driver=raw,node-name=d0,file.driver=file,file.filename=a,,b",
        b"driver=nbd,server.type=inet,server.host=h,server.port=1,export=e,tls-hostname=x",
    ];
    seeds.map(<[u8]>::to_vec).into()
}
