//! How the walk looks: one column of what was sent, one of what came back.
//!
//! Invariant: colour and line cutting serve a terminal; a file or pipe gets plain text at 100 columns.

use std::io::IsTerminal;
use std::process::{Command, Stdio};

pub struct Screen {
    colour: bool,
    width: usize,
}

impl Screen {
    pub fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let width = if terminal { terminal_columns().unwrap_or(100) } else { 100 };
        Self { colour, width: width.clamp(72, 110) }
    }

    pub fn headline(&self, text: &str) {
        println!("\n{}", self.paint("1", text));
    }

    pub fn text(&self, text: &str) {
        println!("{text}");
    }

    /// Text of one paragraph, broken at the width.
    pub fn paragraph(&self, text: &str) {
        let mut line = String::new();
        for word in text.split_whitespace() {
            if !line.is_empty() && line.chars().count() + word.chars().count() >= self.width.min(100) {
                println!("{line}");
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        println!("{line}");
    }

    /// A line of the walk: kept promise or not, what was sent, what came back. `share` is the left
    /// column's part of the width, in hundredths.
    pub fn row(&self, kept: bool, share: usize, left: &str, right: &str) {
        let left_width = (self.width - 4) * share / 100;
        let right_width = self.width - 4 - left_width - 1;
        let (mark, code) = if kept { ("ok", "32") } else { ("!!", "31") };
        let left = cut(&one_line(left), left_width);
        let right = cut(right.trim(), right_width);
        let pad = " ".repeat(left_width.saturating_sub(left.chars().count()));
        println!("{}  {left}{pad} {right}", self.paint(code, mark));
    }

    /// Output of another program, indented; long lines go on below.
    pub fn quote(&self, text: &str) {
        for line in text.lines() {
            let mut rest = line.trim_end();
            while rest.chars().count() > self.width - 4 {
                let end = rest.char_indices().nth(self.width - 4).map_or(rest.len(), |(at, _)| at);
                let end = rest[..end].rfind(' ').filter(|at| *at > 0).unwrap_or(end);
                println!("    {}", &rest[..end]);
                rest = rest[end..].trim_start();
            }
            println!("{}", format!("    {rest}").trim_end());
        }
    }

    pub fn verdict(&self, kept: bool, text: &str) {
        println!("\n{}", self.paint(if kept { "1;32" } else { "1;31" }, text));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// `stty` asks the terminal behind our standard input.
fn terminal_columns() -> Option<usize> {
    let output =
        Command::new("stty").arg("size").stdin(Stdio::inherit()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().nth(1)?.parse().ok().filter(|columns| *columns > 0)
}
