//! Which job a thread of the pool takes.

use super::*;

fn job(key: usize, copies_to: Option<RawFd>) -> Job {
    Job { key, copies_to, work: Work::Sync { fd: -1 } }
}

fn takes(queue: &mut Queue) -> Option<usize> {
    queue.take().map(|job| job.key)
}

#[test]
fn one_thread_at_a_time_copies_to_a_file() {
    let mut queue = Queue::default();
    queue.jobs.extend([job(1, Some(5)), job(2, Some(5)), job(3, None), job(4, Some(6))]);
    assert_eq!(takes(&mut queue), Some(1));
    // What reads, and what writes to another file, goes past the one that has to wait.
    assert_eq!(takes(&mut queue), Some(3));
    assert_eq!(takes(&mut queue), Some(4));
    assert_eq!(takes(&mut queue), None);
    queue.give_back(Some(6));
    assert_eq!(takes(&mut queue), None);
    queue.give_back(Some(5));
    assert_eq!(takes(&mut queue), Some(2));
    assert!(!queue.is_free(&job(5, Some(5))) && queue.is_free(&job(5, Some(6))));
}

#[test]
fn a_job_without_a_file_gives_nothing_back() {
    let mut queue = Queue::default();
    queue.jobs.extend([job(1, Some(5)), job(2, None), job(3, Some(5))]);
    assert_eq!((takes(&mut queue), takes(&mut queue)), (Some(1), Some(2)));
    queue.give_back(None);
    assert_eq!(takes(&mut queue), None);
}
