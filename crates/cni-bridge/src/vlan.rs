//! VLANs as a configuration names them. Pure.

use serde::Deserialize;

use crate::spec::CniError;

/// LIMIT: 0 and 4095 are reserved (IEEE 802.1Q).
const LAST: i64 = 4094;

/// An entry of `vlanTrunk`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Trunk {
    /// One VLAN.
    pub id: Option<i64>,
    /// The first of several.
    #[serde(rename = "minID")]
    pub min: Option<i64>,
    /// The last of several.
    #[serde(rename = "maxID")]
    pub max: Option<i64>,
}

/// VLANs in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// `vlan`: 0 is none.
///
/// # Errors
/// In the words of the reference.
pub fn access(vlan: i64) -> Result<Option<u16>, CniError> {
    match u16::try_from(vlan) {
        Ok(0) => Ok(None),
        Ok(id) if i64::from(id) <= LAST => Ok(Some(id)),
        _ => Err(CniError::other(format!("invalid VLAN ID {vlan} (must be between 0 and 4094)"))),
    }
}

/// `vlanTrunk`
///
/// # Errors
/// In the words of the reference.
pub fn trunk(entries: &[Trunk]) -> Result<Vec<Range>, CniError> {
    let mut ranges = Vec::new();
    let number = |value: i64, what: &str| match u16::try_from(value) {
        Ok(id) if (1..=LAST).contains(&value) => Ok(id),
        _ => Err(CniError::other(format!("incorrect trunk {what} parameter"))),
    };
    for entry in entries {
        match (entry.min, entry.max) {
            (Some(min), Some(max)) => {
                let (first, last) = (number(min, "minID")?, number(max, "maxID")?);
                if first > last {
                    return Err(CniError::other("minID is greater than maxID in trunk parameter"));
                }
                ranges.push(Range { first, last });
            }
            (None, Some(_)) => {
                return Err(CniError::other(
                    "minID and maxID should be configured simultaneously, minID is missing",
                ));
            }
            (Some(_), None) => {
                return Err(CniError::other(
                    "minID and maxID should be configured simultaneously, maxID is missing",
                ));
            }
            (None, None) => {}
        }
        if let Some(id) = entry.id {
            let id = number(id, "id")?;
            ranges.push(Range { first: id, last: id });
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_vlans_are_0_to_4094_and_0_is_none() {
        assert_eq!(access(0), Ok(None));
        assert_eq!(access(4094), Ok(Some(4094)));
        for bad in [-1, 4095, 5000, 70_000] {
            assert!(access(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn trunks_are_single_vlans_and_ranges() {
        let entry = |id, min, max| Trunk { id, min, max };
        let good = trunk(&[entry(Some(101), None, None), entry(None, Some(200), Some(210))]).unwrap();
        assert_eq!(good, [Range { first: 101, last: 101 }, Range { first: 200, last: 210 }]);
        for (bad, words) in [
            (entry(Some(4095), None, None), "incorrect trunk id parameter"),
            (entry(None, Some(0), Some(2)), "incorrect trunk minID parameter"),
            (entry(None, Some(3), Some(2)), "minID is greater than maxID in trunk parameter"),
            (
                entry(None, Some(3), None),
                "minID and maxID should be configured simultaneously, maxID is missing",
            ),
        ] {
            assert_eq!(trunk(&[bad]).unwrap_err().message, words);
        }
    }
}
