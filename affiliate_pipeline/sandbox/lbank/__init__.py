"""LBank's affiliate API in the sandbox: `exchange` responds to calls with the data of `content`.

`signing` verifies calls, `parameters` has the refusal codes. Data is generated: `users` under the affiliate, their
`trades`, `commissions`, `money` (deposits and withdrawals) and `profiles`. It depends only on the account, the user and
the time, so it is the same in every process. These generators use the seeded integers and amounts of `draws`.
"""
