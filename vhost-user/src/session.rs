//! One connection of a front end, from its first message to its last.

use std::cell::RefCell;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use ferry_block::{Error, Executor, Result};
use ferry_devices::virtio::blk::BlkQueues;

use crate::event::{Calls, eventfd};
use crate::log::{DirtyLog, Logging};
use crate::memory::{MAX_REGIONS, MemoryTable};
use crate::ring::{RingSetup, Rings};
use crate::socket::{Message, Socket};
use crate::wire::{
    self, BACKEND_CONFIG_CHANGE, ConfigPart, RegionLayout, Request, RingFd, RingValue, bad,
    feature, protocol,
};

/// What we can of the protocol.
const PROTOCOL: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::CONFIGURE_MEM_SLOTS;

/// The device that a front end sees.
pub(crate) struct Device {
    pub(crate) queues: Rc<BlkQueues>,
    pub(crate) calls: Rc<Calls>,
    /// Virtio's features that are offered.
    pub(crate) features: u64,
    /// How many queues it may have.
    pub(crate) queue_count: u16,
    /// For our own messages.
    channel: RefCell<Option<UnixStream>>,
}

impl Device {
    pub(crate) fn new(
        queues: BlkQueues,
        calls: Rc<Calls>,
        features: u64,
        queue_count: u16,
    ) -> Device {
        let channel = RefCell::default();
        Device { queues: Rc::new(queues), calls, features, queue_count, channel }
    }

    /// The disk has another length in bytes now: tells the front end if there is a way.
    pub(crate) fn resized(&self, len: u64) {
        if !self.queues.set_capacity(len) {
            return;
        }
        let Some(channel) = &*self.channel.borrow() else { return };
        let message = wire::message(BACKEND_CONFIG_CHANGE, false, &[]);
        if let Err(error) = (&*channel).write_all(&message) {
            tracing::warn!("a front end cannot be told of its disk's new length: {error}");
        }
    }
}

/// A connection and what was agreed on.
pub(crate) struct Session {
    executor: Executor,
    socket: Socket,
    device: Rc<Device>,
    features: u64,
    protocol: u64,
    memory: MemoryTable,
    rings: Rings,
    log: Option<Rc<DirtyLog>>,
    logging: Option<Logging>,
}

/// The payload of an answer, for those requests that have one.
type Answer = Option<Vec<u8>>;

impl Session {
    pub(crate) fn new(executor: &Executor, stream: Rc<UnixStream>, device: Rc<Device>) -> Session {
        let rings = Rings::new(Rc::clone(&device.queues), usize::from(device.queue_count));
        let memory = MemoryTable::new(stream.as_raw_fd());
        Session {
            executor: executor.clone(),
            socket: Socket::new(executor.clone(), stream),
            device,
            features: 0,
            protocol: 0,
            memory,
            rings,
            log: None,
            logging: None,
        }
    }

    /// Does what the front end asks for until it hangs up, or until we do; then nothing is in flight.
    ///
    /// # Errors
    /// It does not keep to the protocol, or the connection broke.
    pub(crate) async fn serve(mut self) -> Result<()> {
        let ended = self.converse().await;
        // Whoever watches the connection sees to it that no request is held up any more.
        self.socket.hang_up();
        self.rings.pause_all().await;
        if self.memory.is_lost() || self.log.as_ref().is_some_and(|log| log.is_lost()) {
            return Err(bad("it took its memory away while that was in use"));
        }
        ended
    }

    async fn converse(&mut self) -> Result<()> {
        while let Some(message) = self.socket.receive().await? {
            let number = message.header.request;
            let acknowledge =
                message.header.needs_reply() && self.protocol & protocol::REPLY_ACK != 0;
            match self.answer(message).await {
                Ok(Some(payload)) => self.socket.reply(number, &payload).await?,
                Ok(None) if acknowledge => self.socket.reply(number, &word(0)).await?,
                Ok(None) => {}
                Err(error) => {
                    if acknowledge {
                        self.socket.reply(number, &word(1)).await?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn answer(&mut self, message: Message) -> Result<Answer> {
        let Message { header, payload, fds } = message;
        let request = Request::read(header.request, &payload)?;
        tracing::debug!("{request:x?} with {} descriptors", fds.len());
        match request {
            Request::GetFeatures => {
                let ours = feature::LOG_ALL | feature::PROTOCOL_FEATURES;
                return Ok(Some(word(self.device.features | ours)));
            }
            Request::SetFeatures(features) => self.set_features(features).await?,
            Request::GetProtocolFeatures => return Ok(Some(word(PROTOCOL))),
            Request::SetProtocolFeatures(chosen) => {
                self.protocol = subset(chosen, PROTOCOL, "protocol features")?;
            }
            Request::GetQueueNum => return Ok(Some(word(self.device.queue_count.into()))),
            Request::GetMaxMemSlots => return Ok(Some(word(MAX_REGIONS as u64))),
            Request::SetOwner | Request::SetLogFd => {}
            Request::ResetOwner => self.rings.pause_all().await,
            Request::GetConfig(part) => return Ok(Some(self.config(part))),
            Request::SetConfig(part) => {
                self.device.queues.write_config(part.offset.into(), &part.data);
            }
            Request::SetBackendReqFd => self.set_channel(one(fds)?)?,
            Request::SetLogBase { size, offset } => {
                let log = DirtyLog::map(one(fds)?, size, offset, self.socket.number())?;
                self.rebuild(|this| {
                    this.log = Some(Rc::new(log));
                    Ok(())
                })
                .await?;
                return Ok(Some(word(0)));
            }
            Request::SetMemTable(regions) => self.set_memory(regions, fds).await?,
            Request::AddMemRegion(region) => {
                let fd = one(fds)?;
                self.rebuild(|this| this.memory.add(region, fd)).await?;
            }
            Request::RemoveMemRegion(region) => {
                self.rebuild(|this| this.memory.remove(&region)).await?;
            }
            about_ring => return self.answer_about_ring(about_ring, fds).await,
        }
        Ok(None)
    }

    async fn answer_about_ring(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Answer> {
        let known = (self.features, &self.memory);
        match request {
            Request::SetVringNum(RingValue { index, value }) => {
                self.rings.change(index, known, |ring| ring.set_size(value)).await?;
            }
            Request::SetVringAddr(addresses) => {
                let set = |ring: &mut RingSetup| {
                    ring.addresses = Some(addresses);
                    Ok(())
                };
                self.rings.change(addresses.index, known, set).await?;
            }
            Request::SetVringBase(RingValue { index, value }) => {
                let base = u16::try_from(value)
                    .map_err(|_large| bad(format!("ring {index} cannot begin at {value}")))?;
                let set = |ring: &mut RingSetup| {
                    ring.base = base;
                    Ok(())
                };
                self.rings.change(index, known, set).await?;
            }
            Request::GetVringBase(RingValue { index, .. }) => {
                let base = self.rings.stop(index).await?;
                if let Some(logging) = &self.logging {
                    logging.carry_over();
                }
                return Ok(Some(RingValue { index, value: base.into() }.bytes()));
            }
            Request::SetVringEnable(RingValue { index, value }) => {
                let set = |ring: &mut RingSetup| {
                    ring.enabled = value != 0;
                    Ok(())
                };
                self.rings.change(index, known, set).await?;
            }
            Request::SetVringKick(RingFd { index, has_fd }) => {
                if !has_fd {
                    return Err(bad(format!("ring {index} has no kick; it cannot be polled")));
                }
                let kick = eventfd(one(fds)?)?;
                let set = |ring: &mut RingSetup| {
                    ring.kick = Some(Rc::new(kick));
                    Ok(())
                };
                self.rings.change(index, known, set).await?;
            }
            Request::SetVringCall(ring) => {
                let (place, call) = (self.rings.place(ring.index)?, event_of(ring, fds)?);
                self.device.calls.set_call(place, call);
            }
            Request::SetVringErr(ring) => {
                let (place, err) = (self.rings.place(ring.index)?, event_of(ring, fds)?);
                self.device.calls.set_err(place, err);
            }
            other => return Err(bad(format!("{other:?} is no request about a ring"))),
        }
        Ok(None)
    }

    async fn set_features(&mut self, features: u64) -> Result<()> {
        let offered = self.device.features | feature::LOG_ALL | feature::PROTOCOL_FEATURES;
        let features = subset(features, offered, "features")?;
        if features & feature::PROTOCOL_FEATURES == 0 {
            self.rings.enable_all();
        }
        self.rebuild(|this| {
            this.features = features;
            Ok(())
        })
        .await
    }

    async fn set_memory(&mut self, regions: Vec<RegionLayout>, fds: Vec<OwnedFd>) -> Result<()> {
        if regions.len() != fds.len() {
            let (regions, fds) = (regions.len(), fds.len());
            return Err(bad(format!("{regions} memory regions came with {fds} descriptors")));
        }
        self.rebuild(|this| {
            this.memory.clear();
            let mut pairs = regions.into_iter().zip(fds);
            pairs.try_for_each(|(region, fd)| this.memory.add(region, fd))
        })
        .await
    }

    /// Changes what all rings depend on while they rest, and logs writes from then on if that was agreed on.
    async fn rebuild(&mut self, change: impl FnOnce(&mut Session) -> Result<()>) -> Result<()> {
        self.rings.pause_all().await;
        // What was written until now is carried over to the log that there was.
        self.logging = None;
        change(self)?;
        let log = self.log.clone().filter(|_| self.features & feature::LOG_ALL != 0);
        self.memory.track(log.is_some())?;
        self.logging = log.map(|log| Logging::start(&self.executor, log, self.memory.mapped()));
        self.rings.start_all(self.features, &self.memory)
    }

    fn config(&self, mut part: ConfigPart) -> Vec<u8> {
        self.device.queues.read_config(part.offset.into(), &mut part.data);
        part.bytes()
    }

    fn set_channel(&mut self, fd: OwnedFd) -> Result<()> {
        let channel = UnixStream::from(fd);
        let usable = channel.peer_addr().and_then(|_peer| channel.set_nonblocking(true));
        usable.map_err(|error| Error::from_io(error, "the channel for our messages"))?;
        self.device.channel.replace(Some(channel));
        Ok(())
    }
}

/// The number as a payload.
fn word(number: u64) -> Vec<u8> {
    number.to_ne_bytes().to_vec()
}

/// The only descriptor of a message.
fn one(fds: Vec<OwnedFd>) -> Result<OwnedFd> {
    let count = fds.len();
    match <[OwnedFd; 1]>::try_from(fds) {
        Ok([fd]) => Ok(fd),
        Err(_more) => Err(bad(format!("{count} descriptors came where one is needed"))),
    }
}

fn event_of(ring: RingFd, fds: Vec<OwnedFd>) -> Result<Option<std::fs::File>> {
    if ring.has_fd { one(fds).and_then(eventfd).map(Some) } else { Ok(None) }
}

fn subset(chosen: u64, offered: u64, what: &str) -> Result<u64> {
    let strange = chosen & !offered;
    if strange == 0 {
        return Ok(chosen);
    }
    Err(bad(format!("the {what} {strange:#x} were not offered")))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
