use super::*;

fn header(request: u32, flags: u32, size: u32) -> Result<Header> {
    Header::read([request, flags, size].map(u32::to_ne_bytes).concat().try_into().unwrap())
}

#[test]
fn headers() {
    let plain = header(1, 1, 8).unwrap();
    assert_eq!((plain.request, plain.len, plain.needs_reply()), (1, 8, false));
    assert!(header(1, 9, 0).unwrap().needs_reply());
    for (flags, size) in [(0, 0), (2, 0), (3, 0), (1, 1025), (1, u32::MAX)] {
        assert!(header(1, flags, size).is_err(), "{flags} {size}");
    }
    let reply = message(17, true, &[1, 2]);
    let expected = [&[17_u32, 5, 2].map(u32::to_ne_bytes).concat()[..], &[1, 2]].concat();
    assert_eq!(reply, expected);
}

#[test]
fn payloads() {
    let numbers: Vec<u8> = (1..=5_u64).flat_map(u64::to_ne_bytes).collect();
    let read = |number| Request::read(number, &numbers).unwrap();
    assert_eq!(read(2), Request::SetFeatures(1));
    assert_eq!(read(8), Request::SetVringNum(RingValue { index: 1, value: 0 }));
    let addresses = RingAddresses { index: 1, desc: 2, used: 3, avail: 4 };
    assert_eq!(read(9), Request::SetVringAddr(addresses));
    let region = RegionLayout { guest: 2, size: 3, user: 4, offset: 5 };
    assert_eq!(read(5), Request::SetMemTable(vec![region]));
    assert_eq!(read(37), Request::AddMemRegion(region));
    assert_eq!(read(6), Request::SetLogBase { size: 1, offset: 2 });
    let no_fd = 0x1ff_u64.to_ne_bytes();
    let ring = RingFd { index: 255, has_fd: false };
    assert_eq!(Request::read(13, &no_fd).unwrap(), Request::SetVringCall(ring));
    let config = [2_u32, 3, 1].map(u32::to_ne_bytes).concat();
    let config = [&config[..], &[7, 8, 9]].concat();
    let Request::GetConfig(part) = Request::read(24, &config).unwrap() else { panic!() };
    assert_eq!((part.offset, part.data.as_slice()), (2, &[7, 8, 9][..]));
    assert_eq!(part.bytes(), config);
}

#[test]
fn what_is_cut_off_or_too_much_is_refused() {
    let numbers = [1_u8; 64];
    for number in [2, 5, 6, 8, 9, 10, 11, 12, 13, 14, 16, 18, 24, 25, 37, 38] {
        for len in 0..8 {
            let refused = Request::read(number, &numbers[..len]);
            assert!(refused.is_err(), "{number} with {len} bytes");
        }
    }
    let table = |count: u32, regions: usize| {
        let bytes = [&counted(count)[..], &vec![0; 32 * regions]].concat();
        Request::read(5, &bytes)
    };
    assert!(table(8, 8).is_ok());
    assert!(table(8, 7).is_err() && table(9, 9).is_err() && table(u32::MAX, 1).is_err());
    let config = |offset: u32, size: u32| {
        let fields = [offset, size, 0].map(u32::to_ne_bytes).concat();
        Request::read(24, &[&fields[..], &[0; 300]].concat())
    };
    assert!(config(0, 256).is_ok());
    assert!(config(0, 257).is_err() && config(257, 1).is_err() && config(0, u32::MAX).is_err());
    for number in [0, 19, 22, 31, 39, u32::MAX] {
        assert!(Request::read(number, &numbers).is_err(), "{number}");
    }
}

/// The number of regions, and its padding.
fn counted(count: u32) -> Vec<u8> {
    [count, 0].map(u32::to_ne_bytes).concat()
}
