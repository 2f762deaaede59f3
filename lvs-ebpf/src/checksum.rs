//! The Internet checksum: of a few words, and how it follows a change of one without a look at the rest.

/// RFC 1624 eqn. 3: the checksum after `old` became `new`. A checksum that was wrong stays wrong.
#[inline(always)]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = (!checksum) as u32 + (!old) as u32 + new as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// The same for many words, as they stand in memory.
#[inline(always)]
pub fn exchange<const N: usize>(checksum: u16, old: [u32; N], new: [u32; N]) -> u16 {
    let sum = old.iter().fold(u64::from(!checksum), |sum, word| sum + u64::from(!*word));
    !fold(new.iter().fold(sum, |sum, word| sum + u64::from(*word)))
}

/// RFC 1071, over words as they stand in memory: the sum does not depend on their byte order, and the checksum is in
/// that of the words.
#[inline(always)]
pub fn of<const N: usize>(words: [u32; N]) -> u16 {
    !fold(words.iter().fold(0, |sum: u64, word| sum + u64::from(*word)))
}

/// Eight bytes as they stand in memory, for [`fold`].
#[inline(always)]
pub const fn sum_of(word: u64) -> u64 {
    (word >> 32) + (word & 0xffff_ffff)
}

/// A sum of 32-bit words as one of 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1624_holds() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn an_update_equals_a_new_sum() {
        let mut words = [0x4500u16, 0x0054, 0xbeef, 0x4000, 0x0101, 0xffff, 0x0a00, 0x0001];
        let before = sum(&words);
        words[4] = 0xff01;
        assert_eq!(update(before, 0x0101, 0xff01), sum(&words));
    }

    #[test]
    fn an_exchange_of_words_equals_a_new_sum() {
        let old = [0xdead_beef, 0xffff_ffff, 0x0000_0001, 0x1234_5678];
        for new in [[0; 4], [u32::MAX; 4], [0x0102_0304, 0x8000_0001, 0xffff_0000, 7]] {
            let rest = 0x4711_0815;
            let with = |words: [u32; 4]| of([rest, words[0], words[1], words[2], words[3]]);
            assert_eq!(exchange(with(old), old, new), with(new), "{new:x?}");
        }
    }

    #[test]
    fn all_carries_of_a_sum_are_added() {
        assert_eq!(of([0; 5]), 0xffff);
        assert_eq!(of([u32::MAX; 19]), 0);
        // RFC 1071 3: the sum of these is 0xddf2.
        assert_eq!(of([0x0001_f203, 0xf4f5_f6f7]), !0xddf2);
    }

    fn sum(words: &[u16]) -> u16 {
        let total: u32 = words.iter().map(|&word| u32::from(word)).sum();
        !((total & 0xffff) + (total >> 16)) as u16
    }
}
