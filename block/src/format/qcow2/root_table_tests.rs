use super::*;

fn table() -> RootTable {
    let table = RootTable::default();
    table.reset(0x3_0000, (0..200).map(|entry| entry << 16).collect());
    table
}

#[test]
fn changed_pieces_are_taken_once_and_again_if_they_were_not_written() {
    let table = table();
    assert!(!table.is_dirty() && table.take_dirty().is_empty());
    for (index, entry) in [(199, 7), (64, 8), (65, 9)] {
        table.set(index, entry).unwrap();
    }
    assert_eq!(table.set(200, 1).unwrap_err().kind(), ErrorKind::Corrupt);
    let taken = table.take_dirty();
    let places: Vec<_> = taken.iter().map(|piece| (piece.at, piece.bytes.len())).collect();
    // The last piece is shorter.
    assert_eq!(places, [(0x3_0200, 512), (0x3_0600, 64)]);
    assert_eq!(taken[0].bytes[..16], [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9]);
    assert!(taken.iter().all(Piece::is_intact) && !table.is_dirty());
    table.put_back(&taken[1..]);
    assert_eq!(table.take_dirty()[0].at, 0x3_0600);
    // Where the table is not any more, nothing is to be written.
    table.reset(0x80_0000, vec![0; 64]);
    table.put_back(&taken);
    assert!(table.take_dirty().is_empty());
}

#[test]
fn damage_shows_in_its_piece_whatever_is_changed_later() {
    let table = table();
    table.damage(70);
    assert_eq!(table.entries(), None);
    for index in [3, 70, 71] {
        table.set(index, 1).unwrap();
    }
    let taken = table.take_dirty();
    assert_eq!(taken.iter().map(Piece::is_intact).collect::<Vec<_>>(), [true, false]);
}
