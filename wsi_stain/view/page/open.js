// The view in the address (behind #) is kept; the token is not.
location.replace("/" + location.hash);
