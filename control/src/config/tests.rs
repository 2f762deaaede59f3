//! Nothing that a file can contain stops the reader.
