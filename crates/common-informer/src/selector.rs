//! Label selectors: validated once, then matched many times.
//!
//! What a `meta/v1 LabelSelector` selects must be the same in every controller, so it lives here. The rules
//! are those of `LabelSelectorAsSelector` in apimachinery (`pkg/apis/meta/v1/helpers.go`) and of
//! `labels.Requirement.Matches` (`pkg/labels/selector.go`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::object::{LabelSelector, LabelSelectorRequirement, Str};

/// A validated selector in normal form: two selectors that are written with the same requirements, in
/// whatever order and spelling (`matchLabels` or a single-value `In`), are equal. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Sorted, without duplicates; all must hold.
    requirements: Arc<[Requirement]>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Requirement {
    key: Str,
    test: Test,
}

/// The value lists are sorted and without duplicates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Test {
    In(Box<[Str]>),
    NotIn(Box<[Str]>),
    Exists,
    DoesNotExist,
}

/// Why a selector is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SelectorError {
    /// Path below the selector, e.g. `matchExpressions[0].operator`.
    pub field: String,
    /// What is wrong there, for people.
    pub reason: String,
}

impl Selector {
    /// The selector that matches every object, as `{}` does.
    pub fn everything() -> Self {
        Self { requirements: Arc::new([]) }
    }

    /// Validates a selector.
    ///
    /// # Errors
    /// An unknown operator, an empty key, `In` or `NotIn` without values, `Exists` or `DoesNotExist` with
    /// values. The syntax of keys and values is not checked: a key that no label can have matches no label,
    /// which is what it says.
    pub fn parse(selector: &LabelSelector) -> Result<Self, SelectorError> {
        let mut requirements =
            Vec::with_capacity(selector.match_labels.len() + selector.match_expressions.len());
        for (key, value) in &selector.match_labels {
            if key.is_empty() {
                return Err(error("matchLabels", "a key is empty"));
            }
            requirements.push(Requirement { key: key.clone(), test: Test::In([value.clone()].into()) });
        }
        for (index, expression) in selector.match_expressions.iter().enumerate() {
            let requirement = Requirement::parse(expression)
                .map_err(|(field, reason)| error(&format!("matchExpressions[{index}].{field}"), reason))?;
            requirements.push(requirement);
        }
        requirements.sort();
        requirements.dedup();
        Ok(Self { requirements: requirements.into() })
    }

    /// Whether it has no requirements and so matches every object.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object with these labels is selected.
    ///
    /// `NotIn` and `DoesNotExist` hold for an object without the key; a `matchLabels` entry with the value
    /// `""` does not.
    pub fn matches(&self, labels: &BTreeMap<Str, Str>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.test {
                Test::In(values) => value.is_some_and(|value| values.binary_search(value).is_ok()),
                Test::NotIn(values) => value.is_none_or(|value| values.binary_search(value).is_err()),
                Test::Exists => value.is_some(),
                Test::DoesNotExist => value.is_none(),
            }
        })
    }

    /// Label pairs that every selected object has, in order of the key: from `matchLabels` and from `In`
    /// with one value. An index from pairs to objects can start from any of them.
    pub fn required_pairs(&self) -> impl Iterator<Item = (&Str, &Str)> {
        self.requirements.iter().filter_map(|requirement| match &requirement.test {
            Test::In(values) => match &values[..] {
                [value] => Some((&requirement.key, value)),
                _ => None,
            },
            _ => None,
        })
    }

    /// Text that two selectors share exactly when they are equal; empty for [`Selector::everything`].
    ///
    /// Keys and values are quoted, so that no key or value, valid or not, can imitate another selector.
    pub fn canonical(&self) -> String {
        let mut text = String::new();
        for (index, Requirement { key, test }) in self.requirements.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            // Writing to a String cannot fail.
            let _ = match test {
                Test::In(values) => match &values[..] {
                    [value] => write!(text, "{key:?}={value:?}"),
                    _ => write!(text, "{key:?} in {values:?}"),
                },
                Test::NotIn(values) => write!(text, "{key:?} notin {values:?}"),
                Test::Exists => write!(text, "{key:?}"),
                Test::DoesNotExist => write!(text, "!{key:?}"),
            };
        }
        text
    }
}

impl Requirement {
    fn parse(expression: &LabelSelectorRequirement) -> Result<Self, (&'static str, String)> {
        if expression.key.is_empty() {
            return Err(("key", "is empty".to_owned()));
        }
        let mut values = expression.values.clone();
        values.sort();
        values.dedup();
        let test = match &*expression.operator {
            operator @ ("In" | "NotIn") if values.is_empty() => {
                return Err(("values", format!("the operator {operator} needs at least one value")));
            }
            "In" => Test::In(values.into()),
            "NotIn" => Test::NotIn(values.into()),
            operator @ ("Exists" | "DoesNotExist") if !values.is_empty() => {
                return Err(("values", format!("the operator {operator} takes no values")));
            }
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::DoesNotExist,
            other => {
                return Err(("operator", format!("{other:?} is none of In, NotIn, Exists and DoesNotExist")));
            }
        };
        Ok(Self { key: expression.key.clone(), test })
    }
}

fn error(field: &str, reason: impl Into<String>) -> SelectorError {
    SelectorError { field: field.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Labels;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Arc::new(pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
    }

    fn requirement(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
        LabelSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: values.iter().map(|value| (*value).into()).collect(),
        }
    }

    fn expressions(match_expressions: Vec<LabelSelectorRequirement>) -> LabelSelector {
        LabelSelector { match_labels: BTreeMap::new(), match_expressions }
    }

    fn match_labels(pairs: &[(&str, &str)]) -> LabelSelector {
        LabelSelector { match_labels: (*labels(pairs)).clone(), match_expressions: vec![] }
    }

    #[test]
    fn empty_selector_matches_everything() {
        let selector = Selector::parse(&LabelSelector::default()).unwrap();
        assert_eq!(selector, Selector::everything());
        assert!(selector.is_everything());
        assert!(selector.matches(&labels(&[])) && selector.matches(&labels(&[("a", "b")])));
        assert_eq!(selector.canonical(), "");
    }

    #[test]
    fn negative_operators_match_objects_without_the_key() {
        for expression in [requirement("a", "NotIn", &["x"]), requirement("a", "DoesNotExist", &[])] {
            let selector = Selector::parse(&expressions(vec![expression])).unwrap();
            assert!(selector.matches(&labels(&[("b", "x")])));
            assert!(!selector.matches(&labels(&[("a", "x")])));
        }
    }

    #[test]
    fn positive_operators_need_the_key() {
        let selector = Selector::parse(&expressions(vec![requirement("a", "In", &["x", ""])])).unwrap();
        assert!(selector.matches(&labels(&[("a", "x")])) && selector.matches(&labels(&[("a", "")])));
        assert!(!selector.matches(&labels(&[])) && !selector.matches(&labels(&[("a", "y")])));
        let selector = Selector::parse(&expressions(vec![requirement("a", "Exists", &[])])).unwrap();
        assert!(selector.matches(&labels(&[("a", "")])) && !selector.matches(&labels(&[])));
    }

    #[test]
    fn match_label_with_empty_value_does_not_match_an_absent_key() {
        let selector = Selector::parse(&match_labels(&[("a", "")])).unwrap();
        assert!(selector.matches(&labels(&[("a", "")])));
        assert!(!selector.matches(&labels(&[])));
    }

    #[test]
    fn mistakes_name_the_field() {
        for (expression, field) in [
            (requirement("a", "in", &["x"]), "matchExpressions[1].operator"),
            (requirement("a", "", &["x"]), "matchExpressions[1].operator"),
            (requirement("a", "In", &[]), "matchExpressions[1].values"),
            (requirement("a", "NotIn", &[]), "matchExpressions[1].values"),
            (requirement("a", "Exists", &["x"]), "matchExpressions[1].values"),
            (requirement("a", "DoesNotExist", &["x"]), "matchExpressions[1].values"),
            (requirement("", "Exists", &[]), "matchExpressions[1].key"),
        ] {
            let selector = expressions(vec![requirement("b", "Exists", &[]), expression]);
            assert_eq!(Selector::parse(&selector).unwrap_err().field, field);
        }
        assert_eq!(Selector::parse(&match_labels(&[("", "x")])).unwrap_err().field, "matchLabels");
    }

    #[test]
    fn spelling_and_order_do_not_matter() {
        let one = Selector::parse(&LabelSelector {
            match_labels: match_labels(&[("a", "x")]).match_labels,
            match_expressions: vec![requirement("b", "In", &["2", "1", "2"])],
        });
        let other = Selector::parse(&expressions(vec![
            requirement("b", "In", &["1", "2"]),
            requirement("a", "In", &["x"]),
            requirement("a", "In", &["x", "x"]),
        ]));
        assert_eq!(one, other);
        assert_eq!(one.unwrap().canonical(), r#""a"="x","b" in ["1", "2"]"#);
    }

    #[test]
    fn required_pairs_are_those_of_single_values() {
        let selector = Selector::parse(&LabelSelector {
            match_labels: match_labels(&[("c", "z")]).match_labels,
            match_expressions: vec![
                requirement("a", "In", &["x"]),
                requirement("b", "In", &["1", "2"]),
                requirement("d", "NotIn", &["1"]),
            ],
        })
        .unwrap();
        let pairs: Vec<_> = selector.required_pairs().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(pairs, [("a", "x"), ("c", "z")]);
    }

    prop_compose! {
        fn any_expression()(
            key in "[a-c]",
            operator in prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist"]),
            values in prop::collection::vec("[x-z\",]{0,2}", 1..3),
        ) -> LabelSelectorRequirement {
            let values = if operator.ends_with("In") { values } else { vec![] };
            LabelSelectorRequirement {
                key: key.as_str().into(),
                operator: operator.into(),
                values: values.iter().map(|value| value.as_str().into()).collect(),
            }
        }
    }

    prop_compose! {
        fn any_selector()(
            match_labels in prop::collection::btree_map("[a-c]", "[x-z]{0,1}", 0..3),
            match_expressions in prop::collection::vec(any_expression(), 0..3),
        ) -> LabelSelector {
            LabelSelector {
                match_labels: match_labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect(),
                match_expressions,
            }
        }
    }

    /// The API's definition, word by word, on the selector as it was written.
    fn oracle(selector: &LabelSelector, labels: &BTreeMap<Str, Str>) -> bool {
        selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && selector.match_expressions.iter().all(|expression| {
                let has = labels.contains_key(&expression.key);
                let listed = has && expression.values.contains(&labels[&expression.key]);
                match &*expression.operator {
                    "In" => listed,
                    "NotIn" => !listed,
                    "Exists" => has,
                    _ => !has,
                }
            })
    }

    proptest! {
        #[test]
        fn selectors_agree_with_the_definition(
            selector in any_selector(),
            labels in prop::collection::btree_map("[a-c]", "[x-z\",]{0,2}", 0..4),
        ) {
            let labels: BTreeMap<Str, Str> =
                labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
            let parsed = Selector::parse(&selector).unwrap();
            prop_assert_eq!(parsed.matches(&labels), oracle(&selector, &labels));
            if parsed.matches(&labels) {
                for (key, value) in parsed.required_pairs() {
                    prop_assert_eq!(labels.get(key), Some(value));
                }
            }
        }

        #[test]
        fn canonical_text_is_equal_exactly_for_equal_selectors(one in any_selector(), other in any_selector()) {
            let (one, other) = (Selector::parse(&one).unwrap(), Selector::parse(&other).unwrap());
            prop_assert_eq!(one.canonical() == other.canonical(), one == other);
        }
    }
}
