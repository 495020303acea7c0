use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn pages_of(bitmap: &PageBitmap) -> BTreeSet<u64> {
    bitmap.runs().flat_map(|run| run.first..run.end()).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Set(u64),
    Clear(u64),
    SetRun(u64, u64),
    OrWords(u64, Vec<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..400).prop_map(Step::Set),
        (0u64..400).prop_map(Step::Clear),
        (0u64..400, 0u64..300).prop_map(|(a, n)| Step::SetRun(a, n)),
        (0u64..400, proptest::collection::vec(any::<u64>(), 0..6))
            .prop_map(|(first, words)| Step::OrWords(first, words)),
    ]
}

proptest! {
    #[test]
    fn it_is_a_set(pages in 0u64..300, steps in proptest::collection::vec(step(), 0..40)) {
        let mut bitmap = PageBitmap::new(pages);
        let mut model = BTreeSet::new();
        for step in steps {
            match step {
                Step::Set(p) => { bitmap.set(p); model.insert(p); }
                Step::Clear(p) => { bitmap.clear(p); model.remove(&p); }
                Step::SetRun(first, count) => {
                    bitmap.set_run(PageRun { first, count });
                    model.extend(first..first + count);
                }
                Step::OrWords(first, words) => {
                    bitmap.or_words(first, &words);
                    for (i, word) in words.iter().enumerate() {
                        let base = first + 64 * i as u64;
                        model.extend((0..64).filter(|b| word >> b & 1 == 1).map(|b| base + b));
                    }
                }
            }
            model.retain(|p| *p < pages);
            prop_assert_eq!(pages_of(&bitmap), model.clone());
            prop_assert_eq!(bitmap.count(), model.len() as u64);
            prop_assert_eq!(bitmap.is_empty(), model.is_empty());
            for page in [0, 63, 64, 127, pages, pages + 1] {
                prop_assert_eq!(bitmap.contains(page), model.contains(&page));
            }
        }
    }
}

#[test]
fn runs_are_as_long_as_possible() {
    let mut bitmap = PageBitmap::new(256);
    bitmap.set_run(PageRun { first: 10, count: 120 });
    bitmap.set(255);
    let runs: Vec<_> = bitmap.runs().collect();
    assert_eq!(runs, [PageRun { first: 10, count: 120 }, PageRun { first: 255, count: 1 }]);
}
