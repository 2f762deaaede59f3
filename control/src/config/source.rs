//! Which files a configuration consists of, and where in them a piece of the text stands.
//!
//! The text that is read is one: every `include` replaced by the files it names, every `$NAME` by what it stands for.
//! A [`Span`] points into that text, and [`Text::resolve`] finds the way back.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

/// Of one file and of all together. A thousand services of a hundred real servers have 25 MB.
pub const MAX_BYTES: usize = 64 << 20;

/// A piece of the text, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// The text of a configuration, without comments, includes and references.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
    pieces: Vec<Piece>,
    /// References in whose place text stands, in order.
    uses: Vec<Place>,
}

/// The files read so far.
#[derive(Debug, Default)]
pub struct Files(Vec<SourceFile>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(u16);

/// A piece of one file, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub file: FileId,
    pub start: u32,
    pub end: u32,
}

/// Where text comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub file: FileId,
    pub offset: u32,
    /// The reference in whose place the text stands.
    pub used: Option<Place>,
}

/// Text that continues in its file as it does here, up to the next piece.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    at: u32,
    offset: u32,
    /// One more than the index of the reference, 0 where there is none.
    used: u32,
    file: FileId,
}

#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    text: String,
}

/// One line of a file and a place in it.
pub struct Location<'a> {
    pub path: &'a Path,
    /// Both count from 1; the column counts characters.
    pub line: usize,
    pub column: usize,
    pub text: &'a str,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not a regular file")]
    NotRegular,
    #[error("larger than {MAX_BYTES} bytes")]
    TooLarge,
}

impl Span {
    /// From the start of `self` to the end of `other`.
    pub fn to(self, other: Self) -> Self {
        Self { end: other.end, ..self }
    }

    /// Texts are bounded far below 4 GiB (`MAX_BYTES`, `expand::Expander::room`).
    pub fn new(start: usize, end: usize) -> Self {
        let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self { start: offset(start), end: offset(end) }
    }
}

impl Place {
    pub fn new(file: FileId, start: usize, length: usize) -> Self {
        let Span { start, end } = Span::new(start, start + length);
        Self { file, start, end }
    }
}

impl Origin {
    /// That of the text `bytes` behind.
    pub fn behind(self, bytes: usize) -> Self {
        Self { offset: self.offset.saturating_add(Span::new(bytes, 0).start), ..self }
    }
}

impl Text {
    pub fn push(&mut self, text: &str, origin: Origin) {
        if text.is_empty() {
            return;
        }
        let at = self.end().start;
        let used = origin.used.map_or(0, |used| self.number(used));
        let Origin { file, offset, .. } = origin;
        let goes_on = self.pieces.last().is_some_and(|piece| {
            (piece.file, piece.used) == (file, used) && piece.offset + (at - piece.at) == offset
        });
        if !goes_on {
            self.pieces.push(Piece { at, offset, used, file });
        }
        self.text.push_str(text);
    }

    fn number(&mut self, used: Place) -> u32 {
        if self.uses.last() != Some(&used) {
            self.uses.push(used);
        }
        Span::new(self.uses.len(), 0).start
    }

    /// Blanks in the place of a comment, so that what follows stands as far from what goes before as in the file.
    pub fn pad(&mut self, length: usize) {
        self.text.extend(std::iter::repeat_n(' ', length));
    }

    /// Room for the text of one more file.
    pub fn reserve(&mut self, length: usize) {
        // By no more than that: a list that doubled could take twice the text.
        if self.text.capacity() - self.text.len() < length {
            self.text.reserve_exact(length + self.text.len() / 4);
        }
    }

    pub fn end_line(&mut self) {
        self.text.push('\n');
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where the next text will stand.
    pub fn end(&self) -> Span {
        Span::new(self.text.len(), self.text.len())
    }

    /// Where to point at in a file, and, for text that stands in the place of a reference, where it comes from itself.
    pub fn resolve(&self, span: Span) -> (Place, Option<Place>) {
        let index = self.pieces.partition_point(|piece| piece.at <= span.start);
        let Some(piece) = index.checked_sub(1).and_then(|index| self.pieces.get(index)) else {
            return (Place::default(), None);
        };
        let end = self.pieces.get(index).map_or(span.end, |next| next.at.min(span.end));
        let start = piece.offset + (span.start - piece.at);
        let own = Place { file: piece.file, start, end: start + end.saturating_sub(span.start) };
        let used = (piece.used as usize).checked_sub(1).and_then(|index| self.uses.get(index));
        match used {
            Some(used) => (*used, Some(own)),
            None => (own, None),
        }
    }
}

impl Files {
    pub fn add(&mut self, path: PathBuf, text: String) -> Option<FileId> {
        let id = FileId(u16::try_from(self.0.len()).ok()?);
        self.0.push(SourceFile { path, text });
        Some(id)
    }

    pub fn text(&self, id: FileId) -> &str {
        self.0.get(usize::from(id.0)).map_or("", |file| &file.text)
    }

    pub fn path(&self, id: FileId) -> &Path {
        self.0.get(usize::from(id.0)).map_or(Path::new(""), |file| &file.path)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn bytes(&self) -> usize {
        self.0.iter().map(|file| file.text.len()).sum()
    }

    /// Only for what is shown, which is not much: the lines are counted anew.
    pub fn locate(&self, place: Place) -> Location<'_> {
        let path = self.path(place.file);
        let text = self.text(place.file);
        let before = text.get(..place.start as usize).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.get(start..).unwrap_or("").chars().count() + 1;
        let text = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("");
        Location { path, line, column, text }
    }

    pub fn slice(&self, place: Place) -> &str {
        self.text(place.file).get(place.start as usize..place.end as usize).unwrap_or("")
    }

    pub fn into_paths(self) -> Vec<PathBuf> {
        self.0.into_iter().map(|file| file.path).collect()
    }
}

/// Reads a whole file. Bytes that are not UTF-8 become U+FFFD, which the lexer refuses outside comments.
pub fn read(path: &Path) -> Result<String, ReadError> {
    let (file, metadata) = open(path)?;
    let expected = usize::try_from(metadata.len()).unwrap_or(usize::MAX).min(MAX_BYTES);
    let mut bytes = Vec::with_capacity(expected + 1);
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_BYTES {
        return Err(ReadError::TooLarge);
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
}

/// keepalived leaves executable files out of an include: they are scripts beside the configuration.
pub fn is_executable(path: &Path) -> Result<bool, ReadError> {
    Ok(open(path)?.1.permissions().mode() & 0o111 != 0)
}

/// A regular file, without waiting for anybody.
pub fn open(path: &Path) -> Result<(File, Metadata), ReadError> {
    // Without O_NONBLOCK, opening a FIFO would wait for a writer that may never come.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok((file, metadata)) } else { Err(ReadError::NotRegular) }
}
