//! What was found, on the terminal and in RESULTS.md.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::gateways::{Kind, Peer, version};
use crate::process::machine;
use crate::rows::Bar;

/// Percent: the kernel's own work in between.
const UNDISTURBED: f64 = 5.0;

/// One row of the comparison.
pub(crate) struct Finding {
    pub(crate) key: &'static str,
    pub(crate) title: String,
    /// Of the values that are compared.
    pub(crate) unit: &'static str,
    /// Of the values beside them.
    pub(crate) beside: &'static [&'static str],
    pub(crate) figures: Vec<Figure>,
    /// Percent of the gateway's core that other work took, in the worst turn.
    pub(crate) disturbed: f64,
    pub(crate) bars: &'static [Bar],
}

pub(crate) struct Figure {
    pub(crate) peer: Peer,
    /// One for each round.
    pub(crate) values: Vec<f64>,
    pub(crate) beside: Vec<Spread>,
}

pub(crate) struct Spread {
    least: f64,
    pub(crate) median: f64,
    most: f64,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { least: at(0), median: at(values.len() / 2), most: at(values.len().saturating_sub(1)) }
    }

    fn text(&self) -> String {
        let digits = if self.median < 1000.0 { 1 } else { 0 };
        format!("{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.least, self.most)
    }
}

/// A value of ours held against another's, or against a fixed one.
struct Comparison<'a> {
    ours: &'a Peer,
    against: Option<&'a Peer>,
    value: Spread,
    bar: Option<&'a Bar>,
}

impl Finding {
    pub(crate) fn print(&self) -> String {
        let mut text = format!("\n{} [{}]\n  {:<14} {:>26}", self.title, self.key, "", self.unit);
        for name in self.beside {
            let _ = write!(text, " {name:>13}");
        }
        for figure in &self.figures {
            let value = Spread::of(figure.values.iter().copied());
            let _ = write!(text, "\n  {:<14} {:>26}", figure.peer.name, value.text());
            for spread in &figure.beside {
                let _ = write!(text, " {:>13.0}", spread.median);
            }
        }
        text += &self.disturbance("\n  ");
        for comparison in self.comparisons() {
            let against = comparison.against.map_or(String::new(), |peer| format!(" / {}", peer.name));
            let rounds = (comparison.value.least, comparison.value.most);
            let (ours, value) = (&comparison.ours.name, comparison.value.median);
            let _ = write!(text, "\n  {ours}{against} = {value:.2} (rounds {:.2} to {:.2})", rounds.0, rounds.1);
            if let Some(bar) = comparison.bar {
                let _ = write!(text, "; bar {:.2}, aim {:.2}: {}", bar.bar, bar.aim, bar.verdict(value));
            }
        }
        text
    }

    fn disturbance(&self, before: &str) -> String {
        if self.disturbed <= UNDISTURBED {
            return String::new();
        }
        format!("{before}disturbed: other work took up to {:.0} % of the gateway's core", self.disturbed)
    }

    fn comparisons(&self) -> Vec<Comparison<'_>> {
        let mut all = Vec::new();
        for (index, ours) in self.figures.iter().enumerate() {
            if !matches!(ours.peer.kind, Kind::Hookward(_)) {
                continue;
            }
            for (other, theirs) in self.figures.iter().enumerate() {
                // Of two builds, the later one by the earlier.
                if other == index || (matches!(theirs.peer.kind, Kind::Hookward(_)) && other > index) {
                    continue;
                }
                let bar = self.bars.iter().find(|bar| bar.against == Some(&*theirs.peer.name));
                let median = |figure: &Figure| Spread::of(figure.values.iter().copied()).median;
                // The spread is of the rounds, in each of which the two were neighbours.
                let rounds = ours.values.iter().zip(&theirs.values).map(|(ours, theirs)| ours / theirs);
                let value = Spread { median: median(ours) / median(theirs), ..Spread::of(rounds) };
                all.push(Comparison { ours: &ours.peer, against: Some(&theirs.peer), value, bar });
            }
            if let Some(bar) = self.bars.iter().find(|bar| bar.against.is_none()) {
                let value = Spread::of(ours.values.iter().copied());
                all.push(Comparison { ours: &ours.peer, against: None, value, bar: Some(bar) });
            }
        }
        all
    }

    /// Of the bars: how many there are, and the names of those that were missed.
    fn missed(&self) -> (usize, Vec<String>) {
        let all = self.comparisons();
        let judged: Vec<_> =
            all.iter().filter_map(|one| one.bar.map(|bar| (bar, one.value.median, one.ours))).collect();
        let missed = judged.iter().filter(|(bar, value, _)| value.is_nan() || *value > bar.bar);
        let name = |ours: &Peer, bar: &Bar| {
            let against = bar.against.map_or(String::new(), |against| format!(" / {against}"));
            format!("{} ({}{against})", self.key, ours.name)
        };
        (judged.len(), missed.map(|(bar, _, ours)| name(ours, bar)).collect())
    }
}

pub(crate) fn summary(findings: &[Finding]) -> String {
    let (mut bars, mut missed) = (0, Vec::new());
    for finding in findings {
        let (judged, names) = finding.missed();
        bars += judged;
        missed.extend(names);
    }
    let held = bars - missed.len();
    format!("{held} of {bars} bars hold{}{}", if missed.is_empty() { "" } else { "; missed: " }, missed.join(", "))
}

pub(crate) fn write(path: &Path, peers: &[Peer], findings: &[Finding], how: &str) {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut text = format!(
        "# Results\n\nWritten by `cargo bench --bench peers --features measure -- {}` on {}.\n{}, Linux {}; {how}.\n\n",
        arguments.join(" "),
        time::OffsetDateTime::now_utc().date(),
        machine(),
        crate::process::read("/proc/sys/kernel/osrelease").trim(),
    );
    for peer in peers {
        let _ = writeln!(text, "- {}: {}", peer.name, version(&peer.kind));
    }
    let _ = write!(
        text,
        "\nMedians; in brackets the least and the most of the rounds. Ratios are of the medians; quote them, not the times.\n\
         \n## What is wanted\n\n| row | | value | bar | aim | |\n| --- | --- | --- | --- | --- | --- |\n"
    );
    for finding in findings {
        for comparison in finding.comparisons() {
            let against = comparison.against.map_or(finding.unit, |peer| &peer.name);
            let division = if comparison.against.is_some() { " / " } else { ", " };
            let Spread { least, median, most } = comparison.value;
            let (bar, aim, word) = comparison.bar.map_or_else(
                || (String::new(), String::new(), ""),
                |bar| (format!("≤ {:.2}", bar.bar), format!("≤ {:.2}", bar.aim), bar.verdict(median)),
            );
            let ours = &comparison.ours.name;
            let _ = writeln!(
                text,
                "| {} | {ours}{division}{against} | {median:.2} ({least:.2} to {most:.2}) | {bar} | {aim} | {word} |",
                finding.key
            );
        }
    }
    let _ = writeln!(text, "\n{}.\n\n## Figures", summary(findings));
    for finding in findings {
        let _ = write!(text, "\n### {}: {}\n\n| | {} |", finding.key, finding.title, finding.unit);
        finding.beside.iter().for_each(|name| text += &format!(" {name} |"));
        let _ = write!(text, "\n| --- |{}\n", " --- |".repeat(finding.beside.len() + 1));
        for figure in &finding.figures {
            let value = Spread::of(figure.values.iter().copied());
            let _ = write!(text, "| {} | {} |", figure.peer.name, value.text());
            figure.beside.iter().for_each(|spread| text += &format!(" {} |", spread.text()));
            text.push('\n');
        }
        let disturbance = finding.disturbance("\n");
        if !disturbance.is_empty() {
            text += &format!("{disturbance}.\n");
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
