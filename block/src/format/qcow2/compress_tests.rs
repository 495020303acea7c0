use super::*;
use crate::testing::Rng;

#[test]
fn clusters_come_back_and_noise_is_refused() {
    let mut rng = Rng::new(1);
    let noise: Vec<u8> = (0..65536).map(|_| rng.bits().to_le_bytes()[0]).collect();
    let text: Vec<u8> = (0..65536_u32).map(|at| (at / 100).to_le_bytes()[0]).collect();
    for kind in [Compression::Zlib, Compression::Zstd] {
        assert!(compress(kind, &noise).is_none());
        let mut packed = compress(kind, &text).unwrap();
        packed.extend([0xaa; 511]);
        assert!(decompress(kind, &packed, text.len()).unwrap() == text);
        assert!(decompress(kind, &packed[..20], text.len()).is_none());
        assert!(decompress(kind, &noise[..4096], text.len()).is_none());
    }
}

#[test]
fn a_frame_that_asks_for_much_memory_is_refused() {
    // Magic, then a window descriptor of 2^41 bytes.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00];
    assert!(decompress(Compression::Zstd, &frame, 65536).is_none());
}
