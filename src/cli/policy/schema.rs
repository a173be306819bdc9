//! `phiward policy schema`: prints the JSON Schema of the policy file.

use super::shared::say;
use crate::policy::schema::schema as of_policy;

pub(super) fn schema() -> u8 {
    say(&format!("{:#}\n", of_policy()));
    0
}
