"""LBank's affiliate API in the sandbox: `exchange` responds to calls with what `content` has.

`signing` verifies calls, `parameters` has the refusal codes. Generated data depends only on the user and the time, so
every process and every later day sees the same past: `users` are those under the affiliate, `trades`, `commissions` and
`money` what they do, `profiles` what LBank shows about them. All use the seeded integers and amounts of `draws`.
"""
