//! Words of a zone file, entry by entry: quotes, escapes, comments, brackets over several lines.

use crate::{form::Token, text::escape, zonefile::Fault};

/// What stands on one line, or on several between brackets.
pub(crate) struct Entry<'t> {
    /// At least one.
    pub(crate) tokens: Vec<Token<'t>>,
    /// It starts with space: it continues the owner before.
    pub(crate) is_indented: bool,
    pub(crate) at: usize,
    /// Where it ends.
    pub(crate) end: usize,
}

pub(crate) struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next entry that is not empty.
    pub(crate) fn entry(&mut self) -> Result<Option<Entry<'t>>, Fault> {
        let (mut start, mut open) = (self.at, None);
        let mut tokens = Vec::new();
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' => self.at += 1,
                b';' => self.skip_comment(),
                b'\n' => {
                    if open.is_none() && !tokens.is_empty() {
                        break;
                    }
                    self.at += 1;
                    if open.is_none() {
                        start = self.at;
                    }
                }
                b'(' if open.is_some() => {
                    return Err(Fault::new(self.at, "a `(` stands inside of another"));
                }
                b'(' => {
                    open = Some(self.at);
                    self.at += 1;
                }
                b')' if open.is_none() => return Err(Fault::new(self.at, "there is no `(` for this `)`")),
                b')' => {
                    open = None;
                    self.at += 1;
                }
                b'"' => tokens.push(self.quoted()?),
                _ => tokens.push(self.word()?),
            }
        }
        if let Some(at) = open {
            return Err(Fault::new(at, "this `(` is never closed"));
        }
        let is_indented = matches!(self.text.as_bytes().get(start), Some(b' ' | b'\t'));
        let entry = Entry {
            at: start,
            end: self.at,
            is_indented,
            tokens,
        };
        Ok((!entry.tokens.is_empty()).then_some(entry))
    }

    fn skip_comment(&mut self) {
        while self.peek().is_some_and(|byte| byte != b'\n') {
            self.at += 1;
        }
    }

    fn quoted(&mut self) -> Result<Token<'t>, Fault> {
        let opened = self.at;
        self.at += 1;
        let (start, mut bytes) = (self.at, Vec::new());
        loop {
            match self.peek() {
                None | Some(b'\n') => return Err(Fault::new(opened, "this quote is not closed on its line")),
                Some(b'"') => break,
                Some(byte) => self.take(byte, &mut bytes)?,
            }
        }
        let raw = self.text.get(start..self.at).unwrap_or("");
        self.at += 1;
        match self.peek() {
            None | Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'(' | b')') => Ok(Token {
                raw,
                bytes,
                at: opened,
                is_pair: false,
            }),
            Some(_) => Err(Fault::new(self.at, "there is no space behind a closing quote")),
        }
    }

    fn word(&mut self) -> Result<Token<'t>, Fault> {
        let (start, mut bytes, mut is_pair) = (self.at, Vec::new(), false);
        while let Some(byte) = self.peek() {
            let before = self.at.checked_sub(1).and_then(|at| self.text.as_bytes().get(at));
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b';' | b'(' | b')' => break,
                b'"' if self.at > start && before == Some(&b'=') => {
                    bytes.extend(self.quoted()?.bytes);
                    is_pair = true;
                    break;
                }
                b'"' => return Err(Fault::new(self.at, "there is no space before an opening quote")),
                byte => self.take(byte, &mut bytes)?,
            }
        }
        Ok(Token {
            raw: self.text.get(start..self.at).unwrap_or(""),
            bytes,
            at: start,
            is_pair,
        })
    }

    /// Takes one byte, or what a backslash and more stand for.
    fn take(&mut self, byte: u8, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        match byte {
            b'\\' => {
                let behind = self.text.as_bytes().get(self.at + 1..).unwrap_or(&[]);
                let reason = "`\\` must be followed by a character or three digits up to 255";
                let (value, used) = escape(behind).ok_or_else(|| Fault::new(self.at, reason))?;
                bytes.push(value);
                self.at += 1 + used;
            }
            0..=8 | 11..=31 | 127 => {
                return Err(Fault::new(
                    self.at,
                    "a control character is written as `\\` and three digits",
                ));
            }
            other => {
                bytes.push(other);
                self.at += 1;
            }
        }
        Ok(())
    }
}
