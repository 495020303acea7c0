//! Receiving RAM and state, from a stream that anybody may have written.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::messages::{self, StateEnd};
use crate::ram::receive::Receiver;
use crate::ram::{PAGE_SIZE, RamMap};
use crate::session::Session;
use crate::state::Sections;
use crate::stats::RamStats;
use crate::stream::{Frame, Framed, HEADER_LEN, Kind};

/// How long the source may be silent: it may be limited to next to nothing, or wait for its user. That it
/// is still there, the connection itself watches.
const PATIENCE: Duration = Duration::MAX;

/// Everything of a guest.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) sections: Sections,
    pub(super) guest_running: bool,
}

/// Receives one guest.
#[derive(Debug)]
pub(super) struct Loader<'a> {
    ram: Receiver<'a>,
    session: &'a Session,
    sections: Sections,
    round: u64,
}

impl<'a> Loader<'a> {
    pub(super) fn new(map: &'a RamMap, session: &'a Session) -> Loader<'a> {
        session.stats.update(|s| {
            s.ram =
                Some(RamStats { total: map.bytes(), page_size: PAGE_SIZE, ..RamStats::default() });
        });
        Loader { ram: Receiver::new(map), session, sections: Sections::new(), round: 0 }
    }

    /// Receives until everything is there.
    pub(super) fn run(mut self, framed: &mut Framed) -> Result<Loaded> {
        loop {
            let frame = framed.receive(PATIENCE)?;
            self.session.canceller.check()?;
            // RAM after state would be RAM that the guest wrote after its state was taken.
            let in_state = !self.sections.is_empty();
            match frame.kind {
                Kind::Pages if !in_state => self.pages(framed, &frame)?,
                Kind::ZeroPages if !in_state => self.zero_pages(&frame)?,
                Kind::RoundEnd if !in_state => self.round_end(framed, &frame)?,
                Kind::State => self.state(&frame)?,
                Kind::StateEnd => return self.state_end(&frame),
                Kind::Cancel => return Err(cancelled_by_source(&frame)),
                other => return Err(Error::corrupt(format!("{other:?} out of turn"))),
            }
        }
    }

    fn pages(&mut self, framed: &mut Framed, frame: &Frame) -> Result<()> {
        let pages = self.ram.pages(framed, frame, PATIENCE)?;
        let bytes = (HEADER_LEN + frame.body.len()) as u64 + u64::from(frame.payload_len);
        self.count(bytes, |ram| {
            ram.normal += pages;
            ram.normal_bytes += pages * PAGE_SIZE;
        });
        Ok(())
    }

    fn zero_pages(&mut self, frame: &Frame) -> Result<()> {
        let pages = self.ram.zero_pages(frame)?;
        self.count((HEADER_LEN + frame.body.len()) as u64, |ram| ram.duplicate += pages);
        Ok(())
    }

    fn round_end(&mut self, framed: &mut Framed, frame: &Frame) -> Result<()> {
        self.round += 1;
        if frame.body != self.round.to_le_bytes() {
            return Err(Error::corrupt(format!("round {} ended out of turn", self.round)));
        }
        let round = self.round;
        self.count(0, |ram| ram.dirty_sync_count = round);
        framed.send(Kind::RoundDone, &frame.body)
    }

    fn state(&mut self, frame: &Frame) -> Result<()> {
        self.sections.append(&frame.body)
    }

    fn state_end(self, frame: &Frame) -> Result<Loaded> {
        self.ram.check()?;
        let end: StateEnd = messages::decode("StateEnd", &frame.body)?;
        if end.sections != self.sections.len() as u64 {
            return Err(Error::corrupt(format!(
                "{} state sections arrived of {} sent",
                self.sections.len(),
                end.sections
            )));
        }
        Ok(Loaded { sections: self.sections, guest_running: end.guest_running })
    }

    fn count(&self, bytes: u64, change: impl FnOnce(&mut RamStats)) {
        self.session.stats.update(|s| {
            if let Some(ram) = &mut s.ram {
                ram.transferred += bytes;
                change(ram);
            }
        });
    }
}

/// The source gave up and said why.
pub(super) fn cancelled_by_source(frame: &Frame) -> Error {
    let text = messages::text(&frame.body);
    Error::new(ErrorKind::Remote, format!("the source gave up: {text}"))
}
