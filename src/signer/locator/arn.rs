//! The ARN of a key in AWS KMS. Aliases and bare key ids are refused: an alias can be pointed at another key, and an
//! id alone says neither account nor region.

use std::fmt;

/// `arn:<partition>:kms:<region>:<account>:key/<id>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyArn {
    text: String,
    region: String,
    account: String,
}

impl KeyArn {
    /// Reads a key ARN strictly.
    ///
    /// # Errors
    /// What is wrong with it, and what is wanted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| {
            Err(format!(
                "`{text}`: {why}; give a key ARN, as `arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab`"
            ))
        };
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, service, region, account, resource] = parts.as_slice() else {
            return refuse("is no ARN");
        };
        let word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !matches!(*partition, "aws" | "aws-cn" | "aws-us-gov") {
            return refuse("its partition is none that is known");
        }
        if *service != "kms" {
            return refuse("is not of KMS");
        }
        if !word(region) {
            return refuse("has no region");
        }
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return refuse("its account is not twelve digits");
        }
        match resource.split_once('/') {
            Some(("key", id)) if word(id) => {}
            Some(("alias", _)) => return refuse("is an alias, which can be pointed at another key"),
            _ => return refuse("names no key"),
        }
        Ok(Self { text: text.to_owned(), region: (*region).to_owned(), account: (*account).to_owned() })
    }

    /// The ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The account, twelve digits.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }
}

impl fmt::Display for KeyArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_arn_says_region_and_account_and_nothing_else_passes() {
        let arn = KeyArn::parse("arn:aws:kms:eu-central-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab").unwrap();
        assert_eq!((arn.region(), arn.account()), ("eu-central-1", "111122223333"));
        for (text, why) in [
            ("1234abcd-12ab-34cd-56ef-1234567890ab", "is no ARN"),
            ("alias/quotes", "is no ARN"),
            ("arn:aws:kms:eu-central-1:111122223333:alias/quotes", "is an alias"),
            ("arn:aws:s3:eu-central-1:111122223333:key/1", "is not of KMS"),
            ("arn:gcp:kms:eu-central-1:111122223333:key/1", "partition"),
            ("arn:aws:kms::111122223333:key/1", "no region"),
            ("arn:aws:kms:eu-central-1:1111:key/1", "twelve digits"),
            ("arn:aws:kms:eu-central-1:111122223333:key/", "names no key"),
            ("arn:aws:kms:eu-central-1:111122223333:key/a/b", "names no key"),
        ] {
            let said = KeyArn::parse(text).unwrap_err();
            assert!(said.contains(why) && said.contains("give a key ARN"), "{text}: {said}");
        }
    }
}
