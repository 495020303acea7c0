//! The one table: each row ferry, QEMU, their ratio, and the limit where there is one.

/// Whether a larger or a smaller figure is the better one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    /// Rates.
    Larger,
    /// Times and sizes.
    Smaller,
}

struct Row {
    name: String,
    unit: &'static str,
    better: Better,
    ferry: f64,
    qemu: f64,
    limit: Option<f64>,
}

/// Rows, printed as they come and once more together.
pub(super) struct Table(Vec<Row>);

impl Table {
    pub(super) fn new() -> Table {
        Table(Vec::new())
    }

    /// Adds a row of ferry's and QEMU's figure.
    pub(super) fn row(
        &mut self,
        name: &str,
        unit: &'static str,
        better: Better,
        [ferry, qemu]: [f64; 2],
        limit: Option<f64>,
    ) {
        let row = Row { name: name.to_owned(), unit, better, ferry, qemu, limit };
        println!("{}", row.text());
        self.0.push(row);
    }

    pub(super) fn print(&self) {
        println!(
            "{:<44} {:>11} {:>11} {:>11} {:<6} ferry to QEMU",
            "row", "ferry", "QEMU", "limit", "unit"
        );
        for row in &self.0 {
            println!("{}", row.text());
        }
    }
}

impl Row {
    fn text(&self) -> String {
        let limit = self.limit.map_or_else(String::new, figure);
        let good = match self.better {
            Better::Larger => self.ferry >= self.qemu,
            Better::Smaller => self.ferry <= self.qemu,
        };
        let word = match (self.better, good) {
            (_, false) => "WORSE",
            (Better::Larger, true) => "more",
            (Better::Smaller, true) => "less",
        };
        let ratio = self.ferry / self.qemu;
        format!(
            "{:<44} {:>11} {:>11} {:>11} {:<6} x{ratio:.2} {word}",
            self.name,
            figure(self.ferry),
            figure(self.qemu),
            limit,
            self.unit
        )
    }
}

fn figure(value: f64) -> String {
    if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
