//! What does the number in a file make of a real server?

use tokio::sync::mpsc;

use super::{CheckError, Verdict, Weight};
use crate::{config::model::FileCheck, file_value::Follower};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    #[error("the file says {0}")]
    Says(i32),
    #[error("the file takes {0} from the weight")]
    TooLow(u64),
}

/// As much taken from any weight is a failure, as in keepalived.
const TOO_LOW: i64 = -65_536;

/// Tells what the file says, and each change of that.
pub async fn follow(id: usize, check: &FileCheck, mut file: Follower, verdicts: &mpsc::Sender<Verdict>) {
    let mut told = None;
    loop {
        let judged = judge(check, file.next().await);
        if told == Some(judged) {
            continue;
        }
        told = Some(judged);
        let verdict = Verdict {
            id,
            up: judged.is_ok(),
            weight: judged.ok().flatten(),
            error: judged.err().map(CheckError::from),
        };
        if verdicts.send(verdict).await.is_err() {
            return;
        }
    }
}

fn judge(check: &FileCheck, number: i32) -> Result<Option<Weight>, FileError> {
    if check.weight == 0 {
        return if (number == 0) == check.reverse { Err(FileError::Says(number)) } else { Ok(None) };
    }
    let change = i64::from(check.weight) * i64::from(number);
    match if check.reverse { -change } else { change } {
        change @ ..=TOO_LOW => Err(FileError::TooLow(change.unsigned_abs())),
        change => Ok(Some(Weight::By(change))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_times_its_weight_and_without_one_it_is_a_fault() {
        for (weight, reverse, number, expected) in [
            (0, false, 0, Ok(None)),
            (0, false, 3, Err(FileError::Says(3))),
            (0, true, 3, Ok(None)),
            (0, true, 0, Err(FileError::Says(0))),
            (2, false, 5, Ok(Some(Weight::By(10)))),
            (2, true, 5, Ok(Some(Weight::By(-10)))),
            (-1, false, 65_535, Ok(Some(Weight::By(-65_535)))),
            (-1, false, 65_536, Err(FileError::TooLow(65_536))),
            (i32::MAX, true, i32::MAX, Err(FileError::TooLow(4_611_686_014_132_420_609))),
            (i32::MAX, false, i32::MAX, Ok(Some(Weight::By(4_611_686_014_132_420_609)))),
        ] {
            let check = FileCheck { path: "/run/x".into(), weight, reverse };
            assert_eq!(judge(&check, number), expected, "{weight} {reverse} times {number}");
        }
    }
}
