//! Password hashes: Argon2id, sealed beside the log.

use crate::crypto::Sealer;
use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use engine::Env;
use kernel::id::{TenantId, UserId};
use kernel::{Kind, Rejection};

/// Shortest password.
pub(crate) const PASSWORD_CHARS_MIN: usize = 8;
/// Longest password: more only costs hashing time.
pub(crate) const PASSWORD_CHARS_MAX: usize = 256;

/// From this size on the allocator gets memory from the system, and gives it back, for each use alone. What is smaller is kept for the
/// next use, once for each thread that hashed something.
const GIVEN_BACK_BYTES: usize = 33 * 1024 * 1024;
const OUTPUT_BYTES: usize = 32;

/// 19 MiB, 2 passes, 1 lane: the first recommendation of the OWASP password storage cheat sheet.
fn params() -> Params {
    Params::new(19 * 1024, 2, 1, None).unwrap_or(Params::DEFAULT)
}

fn computed(password: &str, salt: &[u8], params: Params) -> Result<Output, String> {
    let count = params.block_count();
    // Only what is used takes memory.
    let mut blocks = Vec::with_capacity(count.max(GIVEN_BACK_BYTES / Block::SIZE));
    blocks.resize(count, Block::new());
    let mut output = [0; OUTPUT_BYTES];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let done = argon2.hash_password_into_with_memory(password.as_bytes(), salt, &mut output, &mut blocks);
    done.map_err(|e| e.to_string())?;
    Output::new(&output).map_err(|e| e.to_string())
}

/// The hash of a password, in PHC form. Slow on purpose.
pub(crate) fn hash(password: &str, salt: &[u8; 16]) -> Result<String, String> {
    let params = params();
    let hash = PasswordHash {
        algorithm: argon2::ARGON2ID_IDENT,
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).map_err(|e| e.to_string())?,
        salt: Some(Salt::new(salt).map_err(|e| e.to_string())?),
        hash: Some(computed(password, salt, params)?),
    };
    Ok(hash.to_string())
}

/// Whether a password has this hash. Slow on purpose, also for a hash that makes no sense.
pub(crate) fn verify(password: &str, hash: &str) -> bool {
    let Ok(PasswordHash { algorithm, params, salt: Some(salt), hash: Some(known), .. }) = PasswordHash::new(hash) else {
        return false;
    };
    let params = Params::try_from(&params).ok().filter(|_| algorithm == argon2::ARGON2ID_IDENT);
    // Outputs are compared in constant time.
    params.and_then(|params| computed(password, salt.as_ref(), params).ok()).is_some_and(|computed| computed == known)
}

/// The password policy.
pub(crate) fn check(password: &str, username: &str, chars_min: usize) -> Result<(), Rejection> {
    let count = password.chars().count();
    if !(chars_min..=PASSWORD_CHARS_MAX).contains(&count) {
        Err(refused(&format!("It must have {chars_min} to {PASSWORD_CHARS_MAX} characters.")))
    } else if password.eq_ignore_ascii_case(username) {
        Err(refused("It must not be the user name."))
    } else {
        Ok(())
    }
}

/// The answer to a password that is not accepted.
pub(crate) fn refused(problem: &str) -> Rejection {
    Rejection::new(
        Kind::Refused,
        "PASSWORD_REFUSED",
        format!("The password is not accepted. {problem}"),
        "Choose another one; a sentence is good.",
    )
}

/// Hashes and seals a password for its place in the store: name and sealed bytes.
pub(crate) fn set_password_hash(
    sealer: &Sealer,
    env: &Env,
    tenant: TenantId,
    user: UserId,
    password: &str,
) -> Result<(String, Vec<u8>), String> {
    let name = domain::identity::user::password_secret(&user);
    let sealed = sealer.seal(tenant, &name, hash(password, &env.bytes())?.as_bytes(), env.bytes())?;
    Ok((name, sealed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::password_hash::PasswordVerifier as _;

    #[test]
    fn a_password_has_its_own_hash_only() {
        let one = hash("correct horse", &[1; 16]).unwrap();
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(verify("correct horse", &one));
        assert!(
            Argon2::default().verify_password(b"correct horse", &PasswordHash::new(&one).unwrap()).is_ok(),
            "the library agrees"
        );
        assert!(!verify("correct horsf", &one));
        assert!(!verify("correct horse", "nonsense"));
        assert_ne!(one, hash("correct horse", &[2; 16]).unwrap());
    }

    #[test]
    fn short_passwords_and_the_user_name_are_refused() {
        assert!(check("long enough", "ada", 8).is_ok());
        assert!(check("long enough", "ada", 12).is_err());
        for bad in ["short", "", "adalovelace", &"x".repeat(257)] {
            assert!(check(bad, "AdaLovelace", 8).is_err(), "{bad}");
        }
    }
}
