//! What a check found.

use std::fmt;

/// Most findings and repairs that are kept as text; the numbers count all.
const MAX_MESSAGES: usize = 1000;

/// One finding, or what was done about one. Its display is the line that `qemu-img check` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Something that is wrong or could not be checked.
    Error(String),
    /// A cluster that nobody uses.
    Leak(String),
    /// What has been put right.
    Repair(String),
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Error(text) => write!(f, "ERROR {text}"),
            Message::Leak(text) => write!(f, "Leaked {text}"),
            Message::Repair(text) => f.write_str(text),
        }
    }
}

/// What a check found, with the numbers of `qemu-img check`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Structures that contradict each other: data may be lost.
    pub corruptions: u64,
    /// Clusters that are taken but not used: only space is lost.
    pub leaks: u64,
    /// What could not be checked.
    pub check_errors: u64,
    /// Corruptions that were there and are no more.
    pub corruptions_fixed: u64,
    /// Leaks that were there and are no more.
    pub leaks_fixed: u64,
    /// Clusters of the virtual disk.
    pub total_clusters: u64,
    /// Of these, the ones that the image has.
    pub allocated_clusters: u64,
    /// Of these, the ones that do not follow the one before.
    pub fragmented_clusters: u64,
    /// Of these, the compressed ones.
    pub compressed_clusters: u64,
    /// End of the last cluster in use, in bytes.
    pub image_end_offset: u64,
    /// The first findings and repairs, for people.
    pub messages: Vec<Message>,
}

impl CheckReport {
    /// Whether nothing at all is wrong.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }

    pub(super) fn corrupt(&mut self, text: impl Into<String>) {
        self.corruptions += 1;
        self.say(Message::Error(text.into()));
    }

    pub(super) fn leak(&mut self, text: impl Into<String>) {
        self.leaks += 1;
        self.say(Message::Leak(text.into()));
    }

    pub(super) fn repair_corruption(&mut self, text: impl Into<String>) {
        self.corruptions_fixed += 1;
        self.say(Message::Repair(format!("Repairing {}", text.into())));
    }

    pub(super) fn repair_leak(&mut self, text: impl Into<String>) {
        self.leaks_fixed += 1;
        self.say(Message::Repair(format!("Repairing {}", text.into())));
    }

    pub(super) fn fail(&mut self, text: impl Into<String>) {
        self.check_errors += 1;
        self.say(Message::Error(text.into()));
    }

    fn say(&mut self, message: Message) {
        if self.messages.len() < MAX_MESSAGES {
            self.messages.push(message);
        }
    }
}
