"""LBank's affiliate API in the sandbox: `exchange` answers calls from what `content` has.

`signing` verifies, `parameters` has the codes of refusals. Everything generated follows from the user and the time
alone, so that every process and every later day sees the same past: `users` is who is under the affiliate, `trades`,
`commissions` and `money` are what they do, `profiles` what is shown of them, `draws` the seeded integers and amounts
behind all of it.
"""
