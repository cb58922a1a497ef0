//! What can be known of a config without starting anything.

use crate::{
    config::{Config, OtlpSection},
    control,
    policy::Bundle,
    transport::tls,
};

use super::StartError;

/// Everything that `config check` and `serve` both begin with.
///
/// # Errors
/// Everything that is wrong.
pub fn check(config: &Config) -> Result<Bundle, StartError> {
    tls::mutual(&config.grpc).map_err(|fault| StartError::unfit(format!("[grpc]: {fault}")))?;
    tls::mutual(&config.admin).map_err(|fault| StartError::unfit(format!("[admin]: {fault}")))?;
    tls::public(&config.jwks).map_err(|fault| StartError::unfit(format!("[jwks]: {fault}")))?;
    config.reference_key().map_err(StartError::unfit)?;
    config.otlp.as_ref().map_or(Ok(()), OtlpSection::check_files).map_err(StartError::unfit)?;
    for signer in &config.signers {
        signer.check_pin().map_err(StartError::unfit)?;
    }
    let bundle = bundle(config)?;
    fits(config, &bundle)?;
    Ok(bundle)
}

/// The bundle of a config, signed where it must be.
///
/// # Errors
/// Everything that is wrong with it.
pub fn bundle(config: &Config) -> Result<Bundle, StartError> {
    let key = config.policy_key().map_err(StartError::unfit)?;
    Bundle::load_signed(&config.policy, key.as_ref()).map_err(|problems| unfit(config, &problems))
}

/// Whether bundle, config and the key of checkpoints fit each other.
///
/// # Errors
/// Everything that does not.
pub fn fits(config: &Config, bundle: &Bundle) -> Result<(), StartError> {
    let mut problems = control::fits(bundle, config.environment, &config.trust_domains(), |signer, locator| {
        config.accepts(signer, locator)
    });
    problems.extend(control::is_kept(bundle, config.ledger.keep()));
    if let Some(section) = &config.audit.checkpoint {
        section.keys().map_err(StartError::unfit)?;
        let key = section.key().map_err(StartError::unfit)?;
        let fits = match config.accepts(&section.signer, &section.locator) {
            None => Err(format!("`audit.checkpoint.signer` = `{}` is no signer of this config", section.signer)),
            Some(fits) => fits.map_err(|why| format!("`audit.checkpoint.locator`: {why}")),
        };
        fits.map_err(StartError::unfit)?;
        let bundles = config.policy_key().map_err(StartError::unfit)?;
        if bundles.is_some_and(|bundles| bundles.same_key(key.modulus(), key.exponent())) {
            return Err(StartError::unfit("`audit.checkpoint.public_key` signs bundles, too; take a key of its own"));
        }
        problems.extend(control::is_apart(bundle, &key));
    }
    if problems.is_empty() { Ok(()) } else { Err(unfit(config, &problems)) }
}

fn unfit(config: &Config, problems: &[impl ToString]) -> StartError {
    let place = |problem: &dyn ToString| format!("{}/{}", config.policy.display(), problem.to_string());
    StartError::Unfit(problems.iter().map(|problem| place(problem)).collect())
}
