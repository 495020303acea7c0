//! The states of a job, which follow on which, and which verb is accepted in which: pure tables.

use std::fmt;

/// Where a job stands in its life, in QMP's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobStatus {
    /// It exists and has not started.
    Created,
    /// It works.
    Running,
    /// It was asked to pause (or paused itself after an error) before it was ready.
    Paused,
    /// It keeps its result up to date and waits to be told to complete.
    Ready,
    /// It was asked to pause when it was ready.
    Standby,
    /// Its work is done; it waits for the other jobs of its transaction.
    Waiting,
    /// Its work is done and takes effect with `finalize`.
    Pending,
    /// It failed or was cancelled and puts everything back.
    Aborting,
    /// It is over; only its result can still be asked for.
    Concluded,
    /// It is gone.
    Null,
}

/// What a user can tell a job to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobVerb {
    /// Give up, or (a ready mirror, without force) finish without taking effect.
    Cancel,
    /// Stop working for a while.
    Pause,
    /// Work again.
    Resume,
    /// Change the rate limit.
    SetSpeed,
    /// Finish and take effect.
    Complete,
    /// Let the finished work take effect.
    Finalize,
    /// Forget the concluded job.
    Dismiss,
}

impl JobStatus {
    /// Every state, for tables and tests.
    pub const ALL: [JobStatus; 10] = [
        JobStatus::Created,
        JobStatus::Running,
        JobStatus::Paused,
        JobStatus::Ready,
        JobStatus::Standby,
        JobStatus::Waiting,
        JobStatus::Pending,
        JobStatus::Aborting,
        JobStatus::Concluded,
        JobStatus::Null,
    ];

    /// The name QMP shows.
    pub fn as_str(self) -> &'static str {
        match self {
            JobStatus::Created => "created",
            JobStatus::Running => "running",
            JobStatus::Paused => "paused",
            JobStatus::Ready => "ready",
            JobStatus::Standby => "standby",
            JobStatus::Waiting => "waiting",
            JobStatus::Pending => "pending",
            JobStatus::Aborting => "aborting",
            JobStatus::Concluded => "concluded",
            JobStatus::Null => "null",
        }
    }

    /// Whether a job in this state may go to `next`.
    pub fn may_become(self, next: JobStatus) -> bool {
        use JobStatus as S;
        match self {
            S::Created => matches!(next, S::Running | S::Aborting | S::Null),
            S::Running => matches!(next, S::Paused | S::Ready | S::Waiting | S::Aborting),
            S::Paused => matches!(next, S::Running),
            S::Ready => matches!(next, S::Standby | S::Waiting | S::Aborting),
            S::Standby => matches!(next, S::Ready),
            S::Waiting => matches!(next, S::Pending | S::Aborting),
            S::Pending => matches!(next, S::Aborting | S::Concluded),
            S::Aborting => matches!(next, S::Concluded),
            S::Concluded => matches!(next, S::Null),
            S::Null => false,
        }
    }

    /// Whether a job in this state takes `verb`.
    pub fn accepts(self, verb: JobVerb) -> bool {
        use JobStatus as S;
        let works = matches!(self, S::Created | S::Running | S::Paused | S::Ready | S::Standby);
        match verb {
            JobVerb::Cancel => works || matches!(self, S::Waiting | S::Pending),
            JobVerb::Pause | JobVerb::Resume | JobVerb::SetSpeed => works,
            JobVerb::Complete => self.is_ready(),
            JobVerb::Finalize => self == S::Pending,
            JobVerb::Dismiss => self == S::Concluded,
        }
    }

    /// Whether the job has reached the point where it can be completed.
    pub fn is_ready(self) -> bool {
        matches!(self, JobStatus::Ready | JobStatus::Standby)
    }

    /// The state a pause leads to from this one, if pausing changes it.
    pub(crate) fn paused(self) -> Option<JobStatus> {
        match self {
            JobStatus::Running => Some(JobStatus::Paused),
            JobStatus::Ready => Some(JobStatus::Standby),
            _ => None,
        }
    }

    /// The state the end of a pause leads back to.
    pub(crate) fn resumed(self) -> Option<JobStatus> {
        match self {
            JobStatus::Paused => Some(JobStatus::Running),
            JobStatus::Standby => Some(JobStatus::Ready),
            _ => None,
        }
    }
}

impl JobVerb {
    /// The name error texts show.
    pub fn as_str(self) -> &'static str {
        match self {
            JobVerb::Cancel => "cancel",
            JobVerb::Pause => "pause",
            JobVerb::Resume => "resume",
            JobVerb::SetSpeed => "set-speed",
            JobVerb::Complete => "complete",
            JobVerb::Finalize => "finalize",
            JobVerb::Dismiss => "dismiss",
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for JobVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_can_end_and_none_comes_back() {
        for from in JobStatus::ALL {
            // Follow every path: each state but null leads on, and null is reachable from it.
            let (mut seen, mut next) = (vec![from], vec![from]);
            while let Some(state) = next.pop() {
                for to in JobStatus::ALL.into_iter().filter(|to| state.may_become(*to)) {
                    if !seen.contains(&to) {
                        seen.push(to);
                        next.push(to);
                    }
                }
            }
            assert!(seen.contains(&JobStatus::Null), "{from} never ends");
            assert!(!JobStatus::Null.may_become(from));
        }
    }

    #[test]
    fn pausing_and_resuming_are_each_others_inverse() {
        for status in JobStatus::ALL {
            if let Some(paused) = status.paused() {
                assert!(status.may_become(paused) && paused.may_become(status));
                assert_eq!(paused.resumed(), Some(status));
            }
        }
    }

    #[test]
    fn complete_only_when_ready_and_nothing_after_the_end() {
        assert!(!JobStatus::Running.accepts(JobVerb::Complete));
        assert!(JobStatus::Standby.accepts(JobVerb::Complete));
        assert!(!JobStatus::Concluded.accepts(JobVerb::Cancel));
        assert!(JobStatus::Concluded.accepts(JobVerb::Dismiss));
        assert!(!JobStatus::Pending.accepts(JobVerb::Pause));
    }
}
