//! Where a key lies in AWS KMS, as policy writes it: the full ARN of a key. An alias can be turned to another key
//! by whoever may change it, and a key id says neither region nor account, so both are refused.

use std::fmt;

/// Why a text is not the ARN of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArnError {
    /// Not an ARN of a key.
    #[error("`{0}` is no key ARN; write it as `arn:aws:kms:eu-west-1:111122223333:key/` and the key's id")]
    Shape(String),
    /// The ARN or the name of an alias.
    #[error("`{0}` is an alias, which can be turned to another key; write the key's own ARN")]
    Alias(String),
    /// A key of another region than the signer's.
    #[error("`{arn}` is a key of `{is}`, and this signer's region is `{want}`; name the signer of that region")]
    Region {
        /// The key.
        arn: String,
        /// Its region.
        is: String,
        /// The signer's.
        want: String,
    },
}

/// The partitions of AWS.
const PARTITIONS: [&str; 3] = ["aws", "aws-cn", "aws-us-gov"];
const ACCOUNT_DIGITS: usize = 12;

/// The ARN of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyArn(String);

impl KeyArn {
    /// Reads the ARN of a key in this region.
    ///
    /// # Errors
    /// Where it is anything else: an alias, a key id, a key of another region.
    pub fn parse(text: &str, region: &str) -> Result<Self, ArnError> {
        let (arn, is) = Self::anywhere(text)?;
        if is != region {
            return Err(ArnError::Region { arn: text.to_owned(), is: is.to_owned(), want: region.to_owned() });
        }
        Ok(arn)
    }

    /// Reads the ARN of a key, and tells its region.
    ///
    /// # Errors
    /// Where it is anything else: an alias, a key id.
    pub fn anywhere(text: &str) -> Result<(Self, &str), ArnError> {
        let shape = || ArnError::Shape(text.to_owned());
        if text.starts_with("alias/") || text.contains(":alias/") {
            return Err(ArnError::Alias(text.to_owned()));
        }
        let parts: Vec<_> = text.split(':').collect();
        let &["arn", partition, "kms", is, account, key] = parts.as_slice() else {
            return Err(shape());
        };
        let id = key.strip_prefix("key/").ok_or_else(shape)?;
        if !PARTITIONS.contains(&partition) || !is_account(account) || !is_region(is) || !is_key_id(id) {
            return Err(shape());
        }
        Ok((Self(text.to_owned()), is))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether the text has the form of a region's name.
fn is_region(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=32).contains(&text.len()) && text.bytes().all(fits)
}

fn is_account(text: &str) -> bool {
    text.len() == ACCOUNT_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A UUID in lower case, or a multi-region key's `mrk-` and as many hex digits.
fn is_key_id(id: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if let Some(digits) = id.strip_prefix("mrk-") {
        return digits.len() == 32 && is_hex(digits);
    }
    let groups: Vec<_> = id.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(|group| is_hex(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn the_arn_of_a_key_in_each_partition_is_taken() {
        for (partition, region) in [("aws", "eu-west-1"), ("aws-cn", "cn-north-1"), ("aws-us-gov", "us-gov-west-1")] {
            let arn = format!("arn:{partition}:kms:{region}:111122223333:key/{ID}");
            assert_eq!(KeyArn::parse(&arn, region).unwrap().as_str(), arn);
        }
        let multi = "arn:aws:kms:eu-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab";
        assert!(KeyArn::parse(multi, "eu-west-1").is_ok());
    }

    #[test]
    fn what_is_no_key_arn_of_the_region_is_refused_by_kind() {
        let region = "eu-west-1";
        for alias in ["alias/quotes", "arn:aws:kms:eu-west-1:111122223333:alias/quotes"] {
            assert_eq!(KeyArn::parse(alias, region), Err(ArnError::Alias(alias.to_owned())));
        }
        for text in [
            "",
            ID,
            "pkcs11:object=a",
            &format!("arn:aws-eu:kms:eu-west-1:111122223333:key/{ID}"),
            &format!("arn:aws:kms:eu-west-1:11112222333:key/{ID}"),
            &format!("arn:aws:kms:eu-west-1:111122223333:key/{}", ID.to_uppercase()),
            &format!("arn:aws:kms:eu-west-1:111122223333:key/{ID}:1"),
            &format!("arn:aws:kms::111122223333:key/{ID}"),
            "arn:aws:kms:eu-west-1:111122223333:key/mrk-12",
            "arn:aws:kms:eu-west-1:111122223333:key/",
            "arn:aws:iam:eu-west-1:111122223333:role/quotes",
        ] {
            assert_eq!(KeyArn::parse(text, region), Err(ArnError::Shape(text.to_owned())), "{text}");
        }
        let other = KeyArn::parse(&format!("arn:aws:kms:us-east-1:111122223333:key/{ID}"), region).unwrap_err();
        assert!(other.to_string().contains("is a key of `us-east-1`, and this signer's region is `eu-west-1`"));
    }
}
