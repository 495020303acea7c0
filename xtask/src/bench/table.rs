//! The one table: each row ferry, its peer, their ratio, and the limit where there is one.

/// Whether a larger or a smaller figure is the better one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    /// Rates.
    Larger,
    /// Times and sizes.
    Smaller,
}

/// One round of a row: ferry and its peer, one right after the other.
pub(super) type Pair = [f64; 2];

struct Row {
    name: String,
    unit: &'static str,
    better: Better,
    rounds: Vec<Pair>,
    limit: Option<f64>,
}

/// Rows, printed as they come and once more together.
pub(super) struct Table(Vec<Row>);

impl Table {
    pub(super) fn new() -> Table {
        Table(Vec::new())
    }

    /// Adds a row of ferry's and the peer's figures in every round.
    pub(super) fn row(
        &mut self,
        name: &str,
        unit: &'static str,
        better: Better,
        rounds: Vec<Pair>,
        limit: Option<f64>,
    ) {
        let row = Row { name: name.to_owned(), unit, better, rounds, limit };
        println!("{}", row.text());
        self.0.push(row);
    }

    pub(super) fn print(&self) {
        println!(
            "{:<44} {:>11} {:>11} {:>11} {:<6} ferry to peer (lowest to highest round)",
            "row", "ferry", "peer", "limit", "unit"
        );
        for row in &self.0 {
            println!("{}", row.text());
        }
    }
}

impl Row {
    fn text(&self) -> String {
        let limit = self.limit.map_or_else(String::new, figure);
        let [ferry, peer] = [0, 1].map(|side| self.middle(|pair| pair[side]));
        let ratio = self.middle(ratio);
        format!(
            "{:<44} {:>11} {:>11} {:>11} {:<6} x{ratio:.2} ({:.2} to {:.2}) {}",
            self.name,
            figure(ferry),
            figure(peer),
            limit,
            self.unit,
            self.ratios().fold(f64::INFINITY, f64::min),
            self.ratios().fold(0.0, f64::max),
            self.verdict()
        )
    }

    fn ratios(&self) -> impl Iterator<Item = f64> {
        self.rounds.iter().map(ratio)
    }

    fn middle(&self, of: impl Fn(&Pair) -> f64) -> f64 {
        super::median(self.rounds.iter().map(of).collect())
    }

    /// What the rounds agree on. The machine is shared: where they do not, neither side is ahead.
    fn verdict(&self) -> &'static str {
        let all = |better: fn(f64) -> bool| self.ratios().all(better);
        let (more, less) = (all(|ratio| ratio >= 1.0), all(|ratio| ratio <= 1.0));
        match (self.better, more, less) {
            (_, true, true) => "same",
            (Better::Larger, true, _) => "more",
            (Better::Smaller, _, true) => "less",
            (Better::Larger, _, true) | (Better::Smaller, true, _) => "WORSE",
            (_, false, false) => "even: rounds differ",
        }
    }
}

fn ratio([ferry, peer]: &Pair) -> f64 {
    ferry / peer
}

fn figure(value: f64) -> String {
    if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
