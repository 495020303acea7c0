//! A disk that has grown: new links take the place of all, and how the old ones end.
//!
//! A flush over one connection need not say anything about what another one has acknowledged. So an
//! old link whose requests are answered makes them durable, by a flush of its own, before it takes leave;
//! meanwhile flushes of the disk wait. When it breaks, nobody can tell what that means, as ever.

use std::rc::Rc;

use super::super::command::{Answer, Command};
use super::super::connect::connect;
use super::super::link::Link;
use super::successor::succeed;
use super::{Entry, ONE_MORE, Session, State, no_answer};
use crate::error::{ErrorKind, Result};
use crate::executor::within;
use crate::nbd::proto::export;

impl Session {
    /// Asks the server, over one connection more, how long the disk is now. If it has grown, this
    /// and others made after it take the place of all links.
    ///
    /// # Errors
    /// The server does not accept one more in time, or has another disk there now.
    pub(in super::super) async fn look_again(self: &Rc<Self>) -> Result<()> {
        let connecting = connect(&self.executor, &self.target);
        let connected = within(&self.executor, ONE_MORE, connecting).await;
        let (stream, facts) = connected.unwrap_or_else(|| {
            let text = format!("{} accepts no connection more", self.target.options.filename());
            Err(no_answer().context(text))
        })?;
        let kept = succeed(&self.facts(), &facts)?;
        match self.state.get() {
            State::Over => return Err(self.failure()),
            State::Up if kept.size <= self.facts.get().size => {
                Link::start(self, stream, facts).disconnect();
                return Ok(());
            }
            _ => {}
        }
        for link in self.links.borrow().iter().filter(|link| !link.is_retired()) {
            link.retire();
            self.part_with(link);
        }
        self.go_on_over(stream, facts, kept);
        let this = Rc::clone(self);
        drop(self.executor.spawn(async move { this.add_links().await }));
        Ok(())
    }

    /// A request that `link` carried is answered. Whoever has found it knows that it is there.
    pub(in super::super) fn answered(&self, link: &Link, cookie: u64, outcome: Result<Answer>) {
        link.answered();
        if link.is_parting() {
            match &outcome {
                Ok(_) => {}
                // No more can be said than of one that broke.
                Err(error) if error.kind() == ErrorKind::Disconnected => {}
                Err(error) => {
                    let text = "what was written over an earlier connection may be lost";
                    self.undone.replace(Some(error.clone().context(text)));
                }
            }
            link.disconnect();
        }
        self.finish(cookie, outcome);
        self.part_with(link);
    }

    /// Begins the last flush of a link that was retired and has nothing else to do any more.
    fn part_with(&self, link: &Link) {
        if !link.is_retired() || link.is_parting() || link.in_flight() != 0 {
            return;
        }
        let facts = self.facts.get();
        if !facts.can(export::SEND_FLUSH) || facts.can(export::READ_ONLY) {
            link.disconnect();
            return;
        }
        let key = self.insert(Entry { detached: true, ..Entry::new(Command::Flush) });
        link.part();
        self.send_over(link, key);
    }

    /// Whether a request has to wait for links that were retired. A flush does, and where connections
    /// have caches of their own all do: what one is about to write another one need not see.
    pub(super) fn is_held(&self, is_flush: bool) -> bool {
        let held = is_flush || !self.facts.get().can(export::CAN_MULTI_CONN);
        held && self.links.borrow().iter().any(|link| link.is_retired())
    }

    /// A link that was retired is gone: sends what waited for that.
    pub(super) fn parted(&self) {
        if self.state.get() == State::Up {
            self.unanswered(|link| link.is_none()).into_iter().for_each(|key| self.send(key));
        }
    }
}
