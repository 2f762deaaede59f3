//! Which files a configuration consists of, and where in them a piece of text stands.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

/// A file of a thousand services with comments has 300 KB.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// The files read so far. A [`Span`] points into them.
#[derive(Debug, Default)]
pub struct Files(Vec<SourceFile>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(u16);

/// A piece of one file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub file: FileId,
    pub start: u32,
    pub end: u32,
}

#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    text: String,
    /// Offset at which each line starts.
    lines: Vec<u32>,
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
    #[error("larger than {MAX_FILE_BYTES} bytes")]
    TooLarge,
}

impl Span {
    /// From the start of `self` to the end of `other`.
    pub fn to(self, other: Self) -> Self {
        Self { end: other.end, ..self }
    }
}

impl Files {
    pub fn add(&mut self, path: PathBuf, text: String) -> Option<FileId> {
        let id = FileId(u16::try_from(self.0.len()).ok()?);
        let ends = text.bytes().zip(1u32..).filter(|&(byte, _)| byte == b'\n').map(|(_, next)| next);
        let lines = std::iter::once(0).chain(ends).collect();
        self.0.push(SourceFile { path, text, lines });
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

    pub fn locate(&self, span: Span) -> Location<'_> {
        let path = self.path(span.file);
        let text = self.text(span.file);
        let lines = self.0.get(usize::from(span.file.0)).map_or(&[][..], |file| &file.lines);
        let line = lines.partition_point(|&start| start <= span.start).max(1);
        let start = lines.get(line - 1).map_or(0, |&start| start as usize);
        let rest = text.get(start..).unwrap_or("");
        let before = text.get(start..span.start as usize).unwrap_or("");
        let text = rest.lines().next().unwrap_or("");
        Location { path, line, column: before.chars().count() + 1, text }
    }

    pub fn into_paths(self) -> Vec<PathBuf> {
        self.0.into_iter().map(|file| file.path).collect()
    }
}

/// Reads a whole file. Bytes that are not UTF-8 become U+FFFD, which the lexer refuses outside comments.
pub fn read(path: &Path) -> Result<String, ReadError> {
    let (file, _) = open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ReadError::TooLarge);
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
}

/// keepalived leaves executable files out of an include: they are scripts beside the configuration.
pub fn is_executable(path: &Path) -> Result<bool, ReadError> {
    Ok(open(path)?.1.permissions().mode() & 0o111 != 0)
}

fn open(path: &Path) -> Result<(File, Metadata), ReadError> {
    // Without O_NONBLOCK, opening a FIFO would wait for a writer that may never come.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok((file, metadata)) } else { Err(ReadError::NotRegular) }
}
